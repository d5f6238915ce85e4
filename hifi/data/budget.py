"""What an upload has cost so far, and how much it may."""

from __future__ import annotations

from copy import copy

from service.datasets.checking.exchange import Limits, Refusal


class Budget:
    """Counts rows and bytes over all splits, as they are decoded.

    Args:
        limits: of the upload.

    Attributes:
        max_columns: of each split.
    """

    def __init__(self, limits: Limits) -> None:
        self.max_columns = limits.max_columns
        self._limits = limits
        self._rows = 0
        self._bytes = 0

    def fork(self) -> Budget:
        """Give a copy, for a first look at what is counted later."""
        return copy(self)

    def add_rows(self, count: int) -> None:
        """Count rows.

        Raises:
            Refusal: they are too many.
        """
        self._rows += count
        if self._rows > self._limits.max_rows:
            raise Refusal(
                f"the files have more than {self._limits.max_rows} rows, the most allowed"
            )

    def add_bytes(self, count: int) -> None:
        """Count bytes as they lie in memory, decompressed.

        Raises:
            Refusal: they are too many.
        """
        self._bytes += count
        if self._bytes > self._limits.max_bytes:
            raise Refusal(
                f"unpacked, the files have more than {self._limits.max_bytes} bytes, the most "
                "allowed"
            )
