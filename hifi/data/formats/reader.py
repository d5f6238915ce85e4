"""What the readers of all formats have in common, and the way to one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from hifi.data.formats import READERS

if TYPE_CHECKING:
    import pyarrow as pa

    from hifi.data.formats.limits import Budget


class Reader(Protocol):
    """One split, whatever its format.

    Args:
        path: the file.
        budget: what reading may cost.
        columns: those that are wanted; the others may hold anything. None is all of them.

    Attributes:
        schema: plain types, known before the first batch.
        cells: columns of a delimited file, whose texts may be anything.
        class_names: of columns that name their classes.
        metadata: what a Parquet file of these rows must say of its columns.

    Raises:
        DataError: the file cannot be used; it names row and column where one is to blame.
    """

    schema: pa.Schema
    cells: frozenset[str]
    class_names: Mapping[str, tuple[str, ...]]
    metadata: Mapping[bytes, bytes]

    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None: ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows once, a few at a time.

        Raises:
            DataError: as above.
        """


def open_reader(
    path: Path, *, ending: str, budget: Budget, columns: Collection[str] | None = None
) -> Reader:
    """Open a file with the reader of its format.

    Args:
        path: the file; its own name does not matter.
        ending: one of ``hifi.data.formats.ENDINGS``.
        budget: what reading may cost.
        columns: those that are wanted; None is all of them.

    Raises:
        DataError: the file cannot be used.
    """
    module, _, name = READERS[ending].partition(":")
    reader = cast("type[Reader]", getattr(import_module(module), name))
    return reader(path, budget=budget, columns=columns)
