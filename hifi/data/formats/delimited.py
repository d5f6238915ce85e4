"""Read CSV and TSV in constant memory; every cell stays a text."""

from __future__ import annotations

import csv as standard_csv
import io
import secrets
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import pyarrow as pa
from pyarrow import csv

from hifi.data.formats.checks import check_texts, unnamed_columns, wanted_names
from hifi.data.formats.indexes import index_columns, unnamed_column
from hifi.data.formats.limits import too_large_row
from hifi.data.formats.reader import Reader
from hifi.data.types import CELLS
from hifi.errors import DataError, quoted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from hifi.data.formats.limits import Budget

_BLOCKS = 128  # of memory at most, because pyarrow allocates a block for each column
_BATCH_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_HEADER_CHARACTERS = 10_000  # of a header that are searched for its delimiter
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_NAMES = {",": ".csv", "\t": ".tsv"}
_RETURN = ord("\r")
_UNCLOSED = "a quotation mark in this row is not closed"


class DelimitedReader(Reader):
    """One split with a header.

    The reader appends a sentinel row to the file. If the last row read is another one, a quotation
    mark was never closed.

    Attributes:
        header: all columns of the file; one without a name is blank.
    """

    metadata = CELLS
    _delimiter: ClassVar[str]

    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None:
        self._path = path
        self._budget = budget
        self._token = secrets.token_hex(16)
        self._bad: list[csv.InvalidRow] = []
        self._rows = 0
        with path.open("rb") as file:
            beginning = file.read(_HEADER_BYTES)
        limits = budget.limits
        _check_header(beginning, delimiter=self._delimiter, most=limits.max_columns)
        names = self._read_names(beginning)
        self.header = tuple(names)
        self._names = self._included = wanted_names(names, columns, most=limits.max_columns)
        self.unfit = unnamed_columns(names) if columns is None else {}
        self.index = index_columns(self._names)
        # A block is as long as the longest allowed row; pyarrow reads 32 of them ahead.
        room = min(limits.max_row_bytes, _BLOCKS * limits.max_row_bytes // len(names))
        ending = self._delimiter.join([self._token] * len(names))
        self._ending = f"\n{ending}\n".encode()
        self._block_bytes = min(room, path.stat().st_size + len(self._ending))
        self.cells = frozenset(self._names)
        self.schema = _schema_of_texts(self._names)

    def include_unnamed(self) -> None:
        """Read the columns of the whole file, those without a name under their ``unfit`` names."""
        self._names = [
            name if name.strip() else unnamed_column(place, names=self.header)
            for place, name in enumerate(self.header)
        ]
        self._included = []  # pyarrow finds columns by their names, and reads all for none
        self.unfit = {}
        self.cells = frozenset(self._names)
        self.schema = _schema_of_texts(self._names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows once."""
        kept: list[pa.RecordBatch] = []  # the last one ends with the sentinel row
        size = 0
        try:
            for batch in self._open():
                if size > _BATCH_BYTES:
                    yield self._to_texts(kept)
                    kept, size = [], 0
                kept.append(_compact(batch))
                size += batch.nbytes
        except pa.ArrowInvalid as error:
            self._refuse(error, row=self._rows + _count(kept) + 1)
        if not kept or not self._is_ours(kept[-1]):
            raise DataError(_UNCLOSED, row=self._rows + _count(kept))
        kept[-1] = kept[-1].slice(0, kept[-1].num_rows - 1)
        if _count(kept):
            yield self._to_texts(kept)

    @classmethod
    def row_lines(cls, path: Path) -> Iterator[int]:
        """Yield the line on which each row begins; quoted line breaks and blank lines count."""
        starts = _row_starts(path, delimiter=cls._delimiter)
        next(starts, None)  # the header
        return starts

    def _open(self) -> csv.CSVStreamingReader:
        return csv.open_csv(
            pa.PythonFile(_Ended(self._path, self._ending), mode="r"),
            read_options=csv.ReadOptions(use_threads=False, block_size=self._block_bytes),
            parse_options=self._parse_options(self._remember),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(self.header, pa.binary()),
                include_columns=self._included,
            ),
        )

    def _parse_options(self, handle: Callable[[csv.InvalidRow], str]) -> csv.ParseOptions:
        return csv.ParseOptions(
            delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=handle
        )

    def _read_names(self, beginning: bytes) -> list[str]:
        """Read the header with the parser of the rows."""
        try:
            header = csv.open_csv(
                pa.BufferReader(beginning + b"\n"),  # it may end within a row
                read_options=csv.ReadOptions(use_threads=False, block_size=_HEADER_BYTES),
                parse_options=self._parse_options(lambda _: "skip"),
            )
            return list(header.schema.names)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DataError("the header cannot be read; is it UTF-8?") from error

    def _remember(self, row: csv.InvalidRow) -> str:
        self._bad.append(row)
        return "error"

    def _is_ours(self, batch: pa.RecordBatch) -> bool:
        last = batch.slice(batch.num_rows - 1)
        return all(column[0].as_py() == self._token.encode() for column in last.columns)

    def _to_texts(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        """Decode the cells of some batches, and count the rows."""
        arrays = []
        for place, name in enumerate(self._names):
            array = pa.concat_arrays([batch.column(place) for batch in batches])
            texts = _decode(array, first_row=self._rows + 1, column=name)
            check_texts(texts, first_row=self._rows + 1, column=name)
            arrays.append(texts)
        self._rows += _count(batches)
        self._budget.add(rows=_count(batches))
        return pa.record_batch(arrays, schema=self.schema)

    def _refuse(self, error: pa.ArrowInvalid, *, row: int) -> NoReturn:
        """Raise for a row that pyarrow could not parse; ``row`` follows those it returned."""
        if self._bad:
            bad = self._bad[0]
            reason = f"{bad.actual_columns} fields, the header has {bad.expected_columns}"
            if self._token in bad.text:
                reason = _UNCLOSED
            elif '"' in bad.text:
                reason += "; a quotation mark may be misplaced or not closed"
            place = None if bad.number is None else bad.number - 1  # the header is counted
            raise DataError(reason, row=place) from error
        if "straddling" in str(error):
            reason = f"{too_large_row(self._block_bytes)}, or {_UNCLOSED}"
            raise DataError(reason, row=row) from error
        raise DataError("the file cannot be parsed", row=row) from error


class CsvReader(DelimitedReader):
    """Fields separated by commas."""

    _delimiter = ","


class TsvReader(DelimitedReader):
    """Fields separated by tabs."""

    _delimiter = "\t"


def _schema_of_texts(names: list[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Copy a batch, to free the memory that pyarrow allocated: a block for each column."""
    nothing = pa.array([], pa.binary())
    columns = [pa.concat_arrays([column, nothing]) for column in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)


def _count(batches: list[pa.RecordBatch]) -> int:
    return sum(batch.num_rows for batch in batches)


def _row_starts(path: Path, *, delimiter: str) -> Iterator[int]:
    """Yield the line on which the header and each row begin, as pyarrow divides a file."""
    is_quoted = False
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if is_quoted or line != "\n":
                if not is_quoted:
                    yield number
                is_quoted = _ends_quoted(line, delimiter=delimiter, is_quoted=is_quoted)


def _ends_quoted(line: str, *, delimiter: str, is_quoted: bool) -> bool:
    """Return whether a line ends within quotation marks, which begin a field."""
    place = 0
    while True:
        if is_quoted:
            place = line.find('"', place)
            if place < 0:
                return True
            is_quoted = line.startswith('"', place + 1)  # of two, the first escapes the second
            place += 2 if is_quoted else 1
            continue
        if not line.startswith('"', place) or (place and line[place - 1] != delimiter):
            place = line.find(delimiter, place) + 1
            if not place:
                return False
        if line.startswith('"', place):
            is_quoted = True
            place += 1


class _Ended(io.RawIOBase):
    """A file with additional bytes at its end.

    No read ends between the two bytes of a line break: pyarrow would drop the second byte, even
    within a cell.
    """

    def __init__(self, path: Path, ending: bytes) -> None:
        self._file = path.open("rb")
        self._ending = io.BytesIO(ending)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        count = self._file.readinto(view)
        if count < len(view):
            return count + self._ending.readinto(view[count:])
        if count > 1 and view[-1] == _RETURN:
            self._file.seek(-1, io.SEEK_CUR)
            return count - 1
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _check_header(beginning: bytes, *, delimiter: str, most: int) -> None:
    """Refuse a beginning that is not UTF-8, has too many columns, or another delimiter."""
    text = beginning.decode("utf-8-sig", errors="surrogateescape").lstrip("\r\n")
    if not text:
        raise DataError("the file is empty")
    line = io.StringIO(text, newline=None).readline()
    _check_delimiter(line[:_HEADER_CHARACTERS].strip("\n"), delimiter=delimiter)
    if any("\udc80" <= character <= "\udcff" for character in line[:-1]):
        raise DataError("the header is not UTF-8: save the file as UTF-8")
    is_whole = line.endswith("\n") or len(beginning) < _HEADER_BYTES
    count = _count_fields(line, delimiter=delimiter)
    if count > most:
        words = f"{count}" if is_whole else f"at least {count}"
        raise DataError(f"{words} columns; at most {most} are allowed")
    if not is_whole:
        raise DataError(f"the header has more than {_HEADER_BYTES >> 20} MiB")


def _count_fields(line: str, *, delimiter: str) -> int:
    try:
        return len(next(standard_csv.reader([line], delimiter=delimiter), ()))
    except standard_csv.Error:  # a huge field, which the parser will refuse
        return 1


def _check_delimiter(header: str, *, delimiter: str) -> None:
    others = [sign for sign in _DELIMITERS if sign in header]
    if others and delimiter not in header:
        raise DataError(
            f"the file has one column, {quoted(header)}: fields of a {_NAMES[delimiter]} file are "
            f"separated by {_DELIMITERS[delimiter]}, not by {_DELIMITERS[others[0]]}"
        )


def _decode(array: pa.Array, *, first_row: int, column: str) -> pa.Array:
    """Decode cells as UTF-8; refuse the first row that is not."""
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        for index, cell in enumerate(array):
            try:
                cell.as_py().decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not UTF-8 ({error.reason} at byte {error.start + 1} of the cell): save the "
                    "file as UTF-8",
                    row=first_row + index,
                    column=column,
                ) from error
        raise
