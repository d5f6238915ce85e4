"""Whether the training loss still falls at the end of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

_THIRDS = 3
_FEWEST_STEPS = 15  # five a third: fewer say nothing about the spread of a batch's loss
_ERRORS = 2.0  # standard errors by which a fall exceeds the differences between batches
_SHARE = 0.25  # of the whole fall; a run that levels off has less than that left for its last third


@dataclass(frozen=True)
class LossThirds:
    """Sums over the batches' losses in each third of a run's steps; plain numbers, so they resume.

    Attributes:
        counts: of the steps so far.
        sums: of their losses.
        squares: of the losses' squares.
    """

    counts: tuple[int, ...] = (0,) * _THIRDS
    sums: tuple[float, ...] = (0.0,) * _THIRDS
    squares: tuple[float, ...] = (0.0,) * _THIRDS

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` returned."""
        return cls(**{name: tuple(values) for name, values in entry.items()})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {name: list(values) for name, values in vars(self).items()}

    def add(self, loss: float, *, step: int, total_steps: int) -> Self:
        """Add the loss of a step.

        Args:
            loss: of the step's batch.
            step: from 0.
            total_steps: of the run.
        """
        mine = step * _THIRDS // total_steps

        def added(values: tuple[Any, ...], more: float) -> tuple[Any, ...]:
            return tuple(value + more * (third == mine) for third, value in enumerate(values))

        return type(self)(
            added(self.counts, 1), added(self.sums, loss), added(self.squares, loss**2)
        )

    @property
    def is_falling(self) -> bool:
        """Whether the last third's mean is clearly below that of the third before.

        That is by two standard errors, and by a quarter of the fall since the first third. False
        for a run of fewer than 15 steps, and for one that stopped before its last third.
        """
        if sum(self.counts) < _FEWEST_STEPS or not all(self.counts):
            return False
        first, middle, last = (
            total / count for total, count in zip(self.sums, self.counts, strict=True)
        )
        error = math.sqrt(self._squared_error(1) + self._squared_error(2))
        fall = middle - last
        return fall > _ERRORS * error and fall > _SHARE * (first - last)

    def _squared_error(self, third: int) -> float:
        """Return the variance of a third's mean."""
        count = self.counts[third]
        mean = self.sums[third] / count
        return max(self.squares[third] / count - mean**2, 0.0) / max(count - 1, 1)
