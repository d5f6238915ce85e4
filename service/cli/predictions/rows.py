"""Rows to predict: of the command line, or of a file whose other columns are left alone."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hifi.data.formats import ENDINGS, ENDINGS_IN_WORDS
from hifi.data.formats.labelling_tools import find_text
from hifi.data.formats.limits import UNLIMITED, Budget
from hifi.data.formats.reader import find_lines
from hifi.data.spec import RequestColumns, names_in, read_request, request_columns
from hifi.data.task_types import request_fields, task_types
from hifi.errors import DataError
from service.client.errors import ClientError, LocalFileError, reading

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

    from hifi.data.formats.delimited import DelimitedReader
    from hifi.data.formats.json_text import Entry
    from hifi.data.formats.reader import Reader
    from service.client.documents import Job

CHOICES = "choices"  # the field of a task spec, and of an input
_SHOWN_CHARACTERS = 60
_TEXTS = tuple(name for name, field in request_fields().items() if field.kind == "text")
_BATCH_ROWS = 256
_JSONL, _JSON, _PARQUET = ".jsonl", ".json", ".parquet"
_OF_OBJECTS = (_JSONL, _JSON)


class RowsError(ClientError):
    """The options do not form rows, or a row cannot be sent."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An item of a request.

    Attributes:
        item: what is sent.
        shown: its text in the table.
        size: its bytes in a request.
        number: counted from 1, without a header and blank lines.
        answers: that it asks for: one of each job that it names.
        values: of its JSON, at most; each word of a list is one.
    """

    item: Any
    shown: str
    size: int
    number: int
    answers: int = 1
    values: int = 1


def place_of(number: int, line: int | None) -> str:
    """Return the name of a row in messages, with its line in the file where the two differ."""
    return f"row {number}" + ("" if line in (None, number) else f" (line {line})")


def make_row(item: object, *, number: int, shown: str = "") -> Row:
    """Make the row of an item; ``shown`` is by default the beginning of its texts.

    Raises:
        RowsError: JSON cannot represent the item, as an infinite number; the reason without the
            row.
    """
    try:
        text = json.dumps(item, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowsError(f"cannot be sent ({error})") from error
    size = len(text.encode(errors="surrogatepass"))
    jobs = item.get("jobs") if isinstance(item, dict) else None
    return Row(
        item=item,
        shown=shown or _shown(item),
        size=size,
        number=number,
        answers=max(1, len(jobs)) if isinstance(jobs, list) else 1,
        values=sum(map(text.count, ",[{")),
    )


def _shown(item: object) -> str:
    given = item.get("input", item) if isinstance(item, dict) else item
    fields = given if isinstance(given, dict) else {}
    words = fields.get("tokens")
    if isinstance(words, list):
        fields = {"text": " ".join(map(str, words))}
    texts = [fields[name] for name in _TEXTS if isinstance(fields.get(name), str)]
    if not texts:
        return "image" if "image" in fields else ""
    most = _SHOWN_CHARACTERS // len(texts)
    return " | ".join(_beginning(text, most=most) for text in texts)


def _beginning(text: str, *, most: int) -> str:
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def image_item(encoded: bytes) -> dict[str, str]:
    """Return the input of an image file."""
    return {"image": base64.b64encode(encoded).decode()}


def input_columns(job: Job) -> RequestColumns:
    """Return the columns that a job was trained on, by the fields of an input: ``text``, …."""
    return request_columns(job["spec"].get("task") or {})


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows, read from its beginning every time.

    Attributes:
        path: the file.
        name: of the file, for messages.
        ending: its format.
        columns: the training columns by the fields of an input; None if each row names its job:
            ``{"job": …, "input": …}``.
    """

    path: Path
    name: str
    ending: str
    columns: RequestColumns | None

    @property
    def is_list(self) -> bool:
        """Whether the rows are written as a list; those of a JSON file may also be lines."""
        if self.ending != _JSON:
            return False
        from hifi.data.formats.json_file import JsonReader

        with reading(self.name):
            return not JsonReader.holds_lines(self.path, most=UNLIMITED.max_row_bytes)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the file.

        Raises:
            RowsError: a line cannot be read, or a row has no input.
            LocalFileError: the file cannot be read.
        """
        with reading(self.name):
            for number, values in enumerate(self._values(), start=1):
                yield self._row(values, number=number)

    def _row(self, values: dict[str, Any], *, number: int) -> Row:
        try:
            return make_row(self._item(values), number=number)
        except RowsError as error:
            raise RowsError(f"{place_of(number, self._line_of(number))} {error}") from error

    def find_lines(self, rows: Collection[int]) -> dict[int, int]:
        """Return the line on which each of some rows begins; nothing for Parquet.

        Raises:
            LocalFileError: the file cannot be read.
        """
        if self.ending not in _OF_OBJECTS:
            with reading(self.name):
                return find_lines(self.path, ending=self.ending, rows=rows)
        with reading(self.name), self._refusing():
            numbered = enumerate(islice(self._entries(), max(rows, default=0)), start=1)
            return {number: entry.line for number, entry in numbered if number in rows}

    def _line_of(self, row: int) -> int | None:
        return self.find_lines({row}).get(row)

    def documents(self) -> Iterator[dict[str, Any]]:
        """Yield every row of a file of text, with all of its columns."""
        with reading(self.name):
            yield from self._values()

    @contextmanager
    def open_parquet(self) -> Iterator[parquet.ParquetFile]:
        """Open a Parquet file, with all of its columns."""
        from pyarrow import parquet

        with reading(self.name), parquet.ParquetFile(self.path) as file:
            yield file

    def names(self) -> list[str]:
        """Return the names of all columns; those of JSON are the first row's."""
        if self.ending == _PARQUET:
            with self.open_parquet() as file:
                return list(file.schema_arrow.names)
        if self.ending in _OF_OBJECTS:
            return list(next(self.documents(), ()))
        with reading(self.name), self._refusing():
            return list(self._open_delimited().header)

    def _values(self) -> Iterator[dict[str, Any]]:
        """Yield rows; those of Parquet with the columns of the input only."""
        if self.ending == _JSONL:
            yield from _read_lines(self.path, name=self.name)
            return
        with self._refusing():
            if self.ending == _JSON:
                yield from (entry.values for entry in self._entries())
            else:
                yield from chain.from_iterable(batch.to_pylist() for batch in self._batches())

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            if error.row is not None and error.line is None:
                error.line = self._line_of(error.row)
            raise RowsError(f"{self.name}: {error}") from error

    def _entries(self) -> Iterator[Entry]:
        """Yield the objects of a file of JSON, none of which is left out as in training."""
        from hifi.data.formats.json_file import JsonReader
        from hifi.data.formats.jsonl import JsonlReader

        reader = JsonReader if self.ending == _JSON else JsonlReader
        return reader.entries(self.path, most=UNLIMITED.max_row_bytes)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        reader = self._open_columns() if self.ending == _PARQUET else self._open_delimited()
        for batch in reader.batches():
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)

    def _open_columns(self) -> Reader:
        """Open a Parquet file, whose other columns may be of types that no task reads."""
        from hifi.data.formats.parquet import ParquetReader

        there = self.names()
        wanted = set(names_in(self.columns or {}))
        if not wanted or not wanted <= set(there):  # they may have the request's own names
            wanted |= request_fields().keys()
        columns = [name for name in there if name in wanted]
        return ParquetReader(self.path, budget=Budget(UNLIMITED), columns=columns)

    def _open_delimited(self) -> DelimitedReader:
        from hifi.data.formats.delimited import CsvReader, TsvReader

        opened = CsvReader if self.ending == ".csv" else TsvReader
        reader = opened(self.path, budget=Budget(UNLIMITED))
        reader.include_unnamed()
        return reader

    def _item(self, values: dict[str, Any]) -> object:
        """Return the input of a row, from the training columns or else the request's own names.

        Raises:
            RowsError: it has none; the reason without the row.
        """
        if self.columns is None:
            if not {"job", "jobs"} & values.keys():
                hint = 'pass the job\'s id, or {"job": …, "input": …}, or "jobs" of several'
                raise RowsError(f"does not name its job: {hint}")
            return values
        if {"job", "jobs"} & values.keys() and "input" in values:
            raise RowsError("names its own job: remove it, or the job's id before --file")
        fields = request_fields()
        requests = {request for each in task_types() for request in each.requests}
        own = [{field.name: field.name for field in request.fields} for request in requests]
        for names in (self.columns, *sorted(own, key=len, reverse=True)):
            found = read_request(names, values)
            if any(fields[field].is_required for field in found):
                return {field: _sendable(value) for field, value in found.items()}
        text = find_text(values)
        if text is not None:
            return {"text": text}
        wanted = next(iter(names_in(self.columns)), "text")
        there = ", ".join(map(repr, values)) or "none"
        raise RowsError(f"has no column {wanted!r}, which the job reads; it has {there}")


def _sendable(value: object) -> object:
    """Encode an image as a request has it; a Parquet image is bytes, or a struct of them."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return image_item(value)["image"] if isinstance(value, bytes) else value


def _read_lines(path: Path, *, name: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse(line, place=f"{name}: line {number}")


def _parse(line: bytes, *, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{place} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise RowsError(f"{place} is not a JSON object")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


@contextmanager
def open_row_file(name: str, *, columns: RequestColumns | None) -> Iterator[RowFile]:
    """Find a file of rows; ``-`` is JSON Lines from stdin, kept in a temporary file.

    Raises:
        RowsError: the file has another format.
    """
    if name == "-":
        with tempfile.NamedTemporaryFile(suffix=_JSONL) as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            spooled.flush()
            yield RowFile(path=Path(spooled.name), name="stdin", ending=_JSONL, columns=columns)
        return
    path = Path(name)
    ending = path.suffix.lower()
    if path.is_dir():
        raise LocalFileError(f"cannot read {path}: it is a folder")
    if ending not in ENDINGS:
        raise RowsError(f"{path} does not end with {ENDINGS_IN_WORDS}")
    if columns is None and ending not in _OF_OBJECTS:
        raise RowsError(f"{path}: only .jsonl and .json rows name their jobs; pass a job's id")
    yield RowFile(path=path, name=name, ending=ending, columns=columns)
