"""``--out``: the rows of a file with their answers beside them, written once all are there.

The answers so far are kept in ``OUT.part``, so that the same command continues where an earlier one
stopped. The output appears under its name when it is complete.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hifi.canonical import canonical_json
from hifi.cli import output
from hifi.data.answered_rows import (
    PREFIX,
    answer_cells,
    answer_columns,
    answer_entries,
    arrow_fields,
    to_json,
)
from hifi.files import write_atomically
from service.cli.predictions.rows import RowsError

if TYPE_CHECKING:
    from pyarrow import parquet

    from hifi.data.task_types import AnswerField
    from service.cli.predictions.display import RowErrors
    from service.cli.predictions.rows import RowFile
    from service.client.documents import Prediction

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH_BYTES, _BATCH_ROWS = 64 << 20, 1 << 16  # of Parquet in memory at a time


@dataclass(frozen=True, kw_only=True)
class AnsweredFile:
    """The output of ``--out``.

    Attributes:
        path: of the output; it has the format of ``source``.
        source: the rows.
        fields: of the job's answers; unused for JSON, whose rows may name several jobs.
        request: what else the answers depend on: the job, and the options.
    """

    path: Path
    source: RowFile
    fields: Sequence[AnswerField]
    request: Mapping[str, Any]

    @property
    def journal(self) -> Path:
        """The file of the answers so far."""
        return self.path.with_name(f"{self.path.name}.part")

    def check(self) -> None:
        """Check that the output can be written, before any work is done.

        Raises:
            StorageError: its folder is missing or not writable.
            RowsError: it has another format than the source, is the source, or has answers.
        """
        output.check_new_file(self.path)
        if self.path.suffix.lower() != self.source.ending:
            reason = f"must end with {self.source.ending}, as the file of the rows"
            raise RowsError(f"--out {self.path} {reason}")
        if self.path.exists() and self.path.samefile(self.source.path):
            raise RowsError(f"--out {self.path} is the file of the rows; name another one")
        taken = [name for name in self.source.names() if name.startswith(PREFIX)]
        if taken:
            raise RowsError(f"{self.source.name} has answers already: the column {taken[0]!r}")

    @contextmanager
    def open_journal(self) -> Iterator[Journal]:
        """Open the journal, behind the answers of an earlier run; an error removes an empty one.

        Raises:
            RowsError: the journal is that of other rows, another job or other options.
        """
        sha256 = output.describe_file(self.source.path)["sha256"]
        head = canonical_json({**self.request, "sha256": sha256}) + b"\n"
        with self.journal.open("a+b") as file:
            file.seek(0)
            found = file.readline()
            if found.endswith(b"\n") and found != head:
                raise RowsError(
                    f"{self.journal} has answers for other rows, another job or other options: "
                    "remove it, or choose another --out"
                )
            if found != head:  # new, or stopped within its first line
                file.truncate(0)
                file.write(head)
            journal = Journal(file)
            try:
                yield journal
            except BaseException:
                if not journal.done:
                    self.journal.unlink()
                raise

    def write(self, errors: RowErrors) -> dict[str, Any]:
        """Write the output from the source and the journal, and return a description.

        Args:
            errors: empty; gets every answer.
        """
        with write_atomically(self.path) as temporary, self.journal.open("rb") as file:
            answers = islice(map(json.loads, file), 1, None)
            counted = _counted(answers, errors)
            if self.source.ending in _DELIMITERS:
                self._write_delimited(counted, temporary)
            elif self.source.ending == ".parquet":
                self._write_parquet(counted, temporary)
            else:
                self._write_json(counted, temporary)
        self.journal.unlink()
        counts = {"rows": errors.rows, "errors": errors.failed}
        return {**counts, **output.describe_file(self.path)}

    def _write_json(self, answers: Iterator[Prediction], path: Path) -> None:
        start, between, end = ("[\n", ",\n", "\n]\n") if self.source.is_list else ("", "\n", "\n")
        # Half of a surrogate pair is written as JSON's own escape, because UTF-8 has none.
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            before = start
            for row, answer in zip(self.source.documents(), answers, strict=True):
                file.write(f"{before}{to_json({**row, **answer_entries(answer)})}")
                before = between
            file.write(end)

    def _write_delimited(self, answers: Iterator[Prediction], path: Path) -> None:
        delimiter = _DELIMITERS[self.source.ending]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow([*self.source.names(), *answer_columns(self.fields)])
            for row, answer in zip(self.source.documents(), answers, strict=True):
                writer.writerow([*row.values(), *answer_cells(self.fields, answer)])

    def _write_parquet(self, answers: Iterator[Prediction], path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        added = list(arrow_fields(self.fields))
        with self.source.open_parquet() as source:
            schema = source.schema_arrow
            for field in added:
                schema = schema.append(field)
            with parquet.ParquetWriter(path, schema) as writer:
                for batch in source.iter_batches(batch_size=_rows_at_once(source.metadata)):
                    cells = [
                        answer_cells(self.fields, answer)
                        for answer in islice(answers, batch.num_rows)
                    ]
                    columns = zip(*cells, strict=True)
                    arrays = [
                        pa.array(values, field.type)
                        for values, field in zip(columns, added, strict=True)
                    ]
                    whole = pa.record_batch([*batch.columns, *arrays], schema=schema)
                    writer.write_batch(whole)


class Journal:
    """The answers so far, one per line, in the order of the rows.

    Attributes:
        done: the number of rows that have an answer.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Read the answers after the first line; cut off one that was not written whole."""
        self._file = file
        self.done = 0
        end = file.tell()
        for line in file:
            if line.endswith(b"\n"):
                self.done += 1
                end += len(line)
        file.truncate(end)

    def add(self, answers: Sequence[Prediction]) -> None:
        """Append the answers of a request."""
        lines = (f"{json.dumps(answer)}\n".encode() for answer in answers)
        self._file.write(b"".join(lines))
        self._file.flush()
        self.done += len(answers)


def _counted(answers: Iterator[Prediction], errors: RowErrors) -> Iterator[Prediction]:
    """Yield answers, and add each to the errors."""
    for answer in answers:
        errors.add(answer)
        yield answer


def _rows_at_once(metadata: parquet.FileMetaData) -> int:
    """Return how many rows of a file take about ``_BATCH_BYTES``; images are large."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    size: int = sum(group.total_byte_size for group in groups)
    rows: int = metadata.num_rows
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES * rows // max(1, size)))
