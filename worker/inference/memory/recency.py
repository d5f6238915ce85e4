"""What is kept within a budget: the least recently used goes first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Things of different sizes, in the order of their last use.

    Unlike a cache of cachetools it leaves alone what is in use, and says what it lets go of. For
    one thread at a time.

    Args:
        budget: of all sizes together, in whatever unit they are counted.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: dict[Key, tuple[Value, int]] = {}  # the least recently used first
        self._held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        """Go through the keys, the least recently used first."""
        return iter(self._entries)

    @property
    def held(self) -> int:
        """Give the sum of all sizes."""
        return self._held

    def use(self, key: Key) -> Value | None:
        """Give what is kept under a key, now the one used last; None where there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry[0]

    def put(self, key: Key, value: Value, *, size: int) -> None:
        """Keep something as the one used last, in the place of what was kept under its key."""
        self.pop(key)
        self._entries[key] = value, size
        self._held += size

    def pop(self, key: Key) -> Value | None:
        """Let go of something; None where there is no such thing."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._held -= entry[1]
        return entry[0]

    def shrink(
        self, *, is_used: Callable[[Key], object], beside: int = 0
    ) -> list[tuple[Key, Value]]:
        """Let go of things until the rest is within the budget.

        Args:
            is_used: tells what is to stay all the same.
            beside: what else the budget is needed for.

        Returns:
            What was let go of.
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
