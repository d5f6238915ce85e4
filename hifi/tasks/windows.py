"""Texts of any length as overlapping windows, and where in them each part of a text is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERLAP = 4  # a window shares a quarter of its text with the next one


@dataclass(frozen=True, eq=False)
class Window:
    """What a model reads at once of a text.

    Attributes:
        tokens: which tokens of the whole text, special ones included, ``[S]``.
        first: the window's token that is the first of the text itself.
        start: which token of the text itself that is.
        owned: the tokens of the text itself that are answered from this window: those that are
            nearer to its middle than to that of another one.
    """

    tokens: NDArray[np.int64]
    first: int
    start: int
    owned: range

    def places(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places in the window of some of its owned tokens of the text."""
        return tokens - self.start + self.first


def cut_windows(
    sequence_ids: Sequence[int | None],
    *,
    most: int,
    sequence: int = 0,
    overlap: int | None = None,
) -> list[Window]:
    """Cut a text into windows; a text that fits is one window.

    Args:
        sequence_ids: of each token of the whole text: which text it belongs to, None for special
            tokens. The text that is cut is contiguous.
        most: tokens of a window, special ones and those of other texts included.
        sequence: the text that is cut; others are in every window.
        overlap: tokens that two windows share, at most half of those that a window has of the text;
            by default a quarter of them.
    """
    ids = np.array([-1 if each is None else each for each in sequence_ids])
    body = np.flatnonzero(ids == sequence)
    if not len(body):
        return [Window(np.arange(len(ids)), 0, 0, range(0))]
    before, after = np.arange(body[0]), np.arange(body[-1] + 1, len(ids))
    room = most - len(before) - len(after)
    if len(body) <= room:
        return [Window(np.arange(len(ids)), len(before), 0, range(len(body)))]
    shared = room // OVERLAP if overlap is None else min(overlap, room // 2)
    step = max(1, room - shared)
    starts = [*range(0, len(body) - room, step), len(body) - room]
    edges = [0, *((a + room + b) // 2 for a, b in pairwise(starts)), len(body)]
    return [
        Window(
            np.concatenate([before, body[start : start + room], after]),
            len(before),
            start,
            range(edges[number], edges[number + 1]),
        )
        for number, start in enumerate(starts)
    ]
