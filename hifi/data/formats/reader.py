"""The base class of all readers, and the function that opens one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.data.formats import READERS

if TYPE_CHECKING:
    import pyarrow as pa

    from hifi.data.formats.limits import Budget


class Reader(ABC):
    """One split, in any format.

    Args:
        path: the file.
        budget: limits the reading.
        columns: the requested columns; others are not checked. None is all of them.

    Attributes:
        schema: plain types, known before the first batch.
        cells: the columns of a delimited file, whose texts are cells.
        class_names: of columns that name their classes.
        metadata: schema metadata for a Parquet file of these rows.

    Raises:
        DataError: the file cannot be used; the error has row and column if they are the cause.
    """

    schema: pa.Schema
    cells: frozenset[str] = frozenset()
    class_names: Mapping[str, tuple[str, ...]] = {}
    metadata: Mapping[bytes, bytes] = {}

    @abstractmethod
    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None: ...

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
        columns: the requested columns; None is all of them.

    Raises:
        DataError: the file cannot be used.
    """
    module, _, name = READERS[ending].partition(":")
    reader: type[Reader] = getattr(import_module(module), name)
    return reader(path, budget=budget, columns=columns)
