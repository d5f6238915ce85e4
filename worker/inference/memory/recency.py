"""A collection with a budget that evicts the least recently used entries."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Entries of different sizes, in the order of their last use. Not thread-safe.

    Unlike the caches of cachetools, it never evicts entries in use, and returns what it evicts.

    Args:
        budget: of all sizes together, in the unit of the sizes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: dict[Key, tuple[Value, int]] = {}  # the least recently used first
        self._held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys, the least recently used first."""
        return iter(self._entries)

    @property
    def held(self) -> int:
        """The sum of all sizes."""
        return self._held

    def use(self, key: Key) -> Value | None:
        """Return the value of a key and mark it as most recently used; None if it is missing."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry[0]

    def put(self, key: Key, value: Value, *, size: int) -> None:
        """Add or replace the value of a key, as the most recently used."""
        self.pop(key)
        self._entries[key] = value, size
        self._held += size

    def pop(self, key: Key) -> Value | None:
        """Remove a key and return its value; None if it is missing."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._held -= entry[1]
        return entry[0]

    def shrink(
        self, *, is_used: Callable[[Key], object], beside: int = 0
    ) -> list[tuple[Key, Value]]:
        """Evict entries until the rest is within the budget.

        Args:
            is_used: whether an entry is in use and must stay.
            beside: the part of the budget that is needed for something else.

        Returns:
            The evicted entries.
        """
        gone: list[tuple[Key, Value]] = []
        for key in list(self._entries):
            if self._held + beside <= self.budget:
                break
            if not is_used(key):
                value, size = self._entries.pop(key)
                self._held -= size
                gone.append((key, value))
        return gone
