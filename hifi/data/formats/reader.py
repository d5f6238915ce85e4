"""The base class of all readers, and the function that opens one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.data.formats import READERS
from hifi.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from hifi.data.formats.limits import Budget


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """Why no task can use a column.

    Attributes:
        type: of the rows above the first that does not fit, or of the whole column.
        row: the first row that does not fit; None for the whole column.
        reason: the problem.
    """

    type: pa.DataType
    row: int | None
    reason: str

    def error(self, column: str) -> DataError:
        """Return the error for a task that needs the column."""
        return DataError(self.reason, row=self.row, column=column)


class Reader(ABC):
    """One split, in any format.

    Args:
        path: the file.
        budget: limits the reading.
        columns: the requested columns; others are not checked. None is all that a task can use.

    Attributes:
        schema: plain types, known before the first batch.
        unfit: the columns that are not read, because no task can use them; empty if columns are
            requested.
        index: the columns that are a table's index.
        cells: the columns of a delimited file, whose texts are cells.
        class_names: of columns that name their classes.
        metadata: schema metadata for a Parquet file of these rows.
        left_out: the number of rows that are not read, because an annotator did not accept them.

    Raises:
        DataError: the file cannot be used; the error has row and column if they are the cause.
    """

    schema: pa.Schema
    unfit: Mapping[str, Unfit] = {}
    index: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()
    class_names: Mapping[str, tuple[str, ...]] = {}
    metadata: Mapping[bytes, bytes] = {}
    left_out: int = 0

    @abstractmethod
    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None: ...

    @classmethod
    def row_lines(cls, path: Path) -> Iterator[int]:  # noqa: ARG003 - a file without lines
        """Yield the line on which each row of a text file begins; nothing for other files."""
        return iter(())

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows once, in batches.

        Raises:
            DataError: a row cannot be used.
        """


def open_reader(
    path: Path, *, ending: str, budget: Budget, columns: Collection[str] | None = None
) -> Reader:
    """Open a file with the reader of its format.

    Args:
        path: the file; its name is not used.
        ending: one of ``hifi.data.formats.ENDINGS``.
        budget: limits the reading.
        columns: the requested columns; None is all that a task can use.

    Raises:
        DataError: the file cannot be used.
    """
    return _reader(ending)(path, budget=budget, columns=columns)


def find_lines(path: Path, *, ending: str, rows: Collection[int]) -> dict[int, int]:
    """Return the line on which each of some rows begins; empty for a file without lines.

    The file is read once, up to the last of the rows.

    Args:
        path: the file.
        ending: one of ``hifi.data.formats.ENDINGS``.
        rows: numbers from 1.
    """
    last = max(rows, default=0)
    numbered = enumerate(islice(_reader(ending).row_lines(path), last), start=1)
    return {row: line for row, line in numbered if row in rows}


def _reader(ending: str) -> type[Reader]:
    module, _, name = READERS[ending].partition(":")
    reader: type[Reader] = getattr(import_module(module), name)
    return reader
