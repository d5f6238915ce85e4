"""Limits on reading files, and counters to enforce them."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from hifi.errors import DataError

# Of a text that a task reads, in training and in a prediction: tokenising a million characters
# takes a second, although all but the first thousand are cut.
MAX_CHARACTERS = 100_000
_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """Limits on the files of one data set.

    Uploads are not trusted, so a child process of the gateway reads them within limits. The library
    reads files that its own user chose, as a whole into memory, without limits except that of a row
    (:data:`UNLIMITED`). All other checks are the same, with one exception: if the user names all
    columns, the library ignores the others, while an upload keeps and checks all of them.

    Attributes:
        max_bytes: of all splits, decompressed in memory.
        max_rows: of all splits. A worker needs half a kilobyte for each row of a short text.
        max_columns: of each split, including entries of nested columns.
        max_row_bytes: of one row of a text file, or of the texts in one row of a Parquet file.
    """

    max_bytes: int = 4 * _GIB
    max_rows: int = 5_000_000
    max_columns: int = 1000
    max_row_bytes: int = 2 << 20


UNLIMITED = ReadLimits(
    max_bytes=sys.maxsize, max_rows=sys.maxsize, max_columns=sys.maxsize, max_row_bytes=32 << 20
)


def too_large_row(most: int) -> str:
    """Return the beginning of the message for a row of more than ``most`` bytes."""
    return f"the row has more than {size_in_words(most)}"


def size_in_words(size: int) -> str:
    """Return a number of bytes in whole units."""
    return f"{size >> 10} KiB" if size % _MIB else f"{size // _MIB} MiB"


def too_many_characters(characters: int) -> str:
    """Return the message for a text that is too long for every task."""
    return f"the text has {characters:,} characters; at most {MAX_CHARACTERS:,} are allowed"


class Budget:
    """Counts rows and bytes over all splits, as they are decoded.

    Args:
        limits: of the data set.
        scratch: a folder for temporary files; None is the system's.
    """

    def __init__(self, limits: ReadLimits, *, scratch: Path | None = None) -> None:
        self.limits = limits
        self.scratch = scratch
        self._rows = 0
        self._bytes = 0

    def fork(self) -> Budget:
        """Return a copy, to check something that is counted later."""
        return copy(self)

    def add(self, *, rows: int = 0, size: int = 0) -> None:
        """Count rows, and bytes in memory, decompressed.

        Raises:
            DataError: there are too many.
        """
        self._rows += rows
        if self._rows > self.limits.max_rows:
            raise DataError(
                f"the files have more than {self.limits.max_rows} rows, the most allowed"
            )
        self._bytes += size
        if self._bytes > self.limits.max_bytes:
            raise DataError(
                f"unpacked, the files have more than {self.limits.max_bytes} bytes, the most "
                "allowed"
            )
