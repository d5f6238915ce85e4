"""Scores of heads as shares of the heads that compete, which is how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

Pool = Literal["layer", "model"]


def pool_of(budget: int | None) -> Pool:
    """Return which heads compete: those of a layer, or with a budget those of the model."""
    return "layer" if budget is None else "model"


def shares_of(values: Sequence[Sequence[float | None]], *, pool: Pool) -> list[list[float]]:
    """Divide scores ``[L][H]`` by the sum of their pool's magnitudes; None counts as 0."""
    known = [[value or 0.0 for value in row] for row in values]
    if pool == "model":
        [whole] = shares_of([list(chain(*known))], pool="layer")
        width = len(known[0])
        return [whole[start : start + width] for start in range(0, len(whole), width)]
    largest = [max(map(abs, row)) or 1.0 for row in known]  # the sum may be more than floats hold
    scaled = [[value / most for value in row] for row, most in zip(known, largest, strict=True)]
    return [[value / (sum(map(abs, row)) or 1.0) for value in row] for row in scaled]
