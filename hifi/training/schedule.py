"""The schedule of a run: its steps, the learning rate of each, and when it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hifi.data.training_defaults import count_steps_per_epoch

if TYPE_CHECKING:
    from hifi.data.settings import Hyperparameters

MOST_EVALUATIONS = 20  # without a limit, those of few rows would take longer than the steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run ends and is evaluated, and the learning rate of each step.

    Attributes:
        epochs: passes over the training split.
        steps_per_epoch: batches of the training split.
        learning_rate: the peak.
        warmup_ratio: share of the steps in which the rate rises.
    """

    epochs: int
    steps_per_epoch: int
    learning_rate: float
    warmup_ratio: float

    @classmethod
    def of(cls, settings: Hyperparameters, *, rows: int, hidden_size: int) -> Schedule:
        """Return the schedule of a run.

        Args:
            settings: the hyperparameters.
            rows: of the training split.
            hidden_size: D, the backbone's hidden size.
        """
        return cls(
            epochs=settings.count_epochs(rows=rows),
            steps_per_epoch=count_steps_per_epoch(rows=rows, batch_size=settings.batch_size),
            learning_rate=settings.peak_rate(hidden_size=hidden_size),
            warmup_ratio=settings.warmup_ratio,
        )

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.epochs * self.steps_per_epoch

    def rate_at(self, step: int) -> float:
        """Return the learning rate of one step, from 0; no step has the rate 0."""
        warmup = math.ceil(self.steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (self.steps - step) / (self.steps - warmup)

    def is_evaluated_after(self, steps: int) -> bool:
        """Return whether a run is evaluated after so many steps.

        It is after each epoch, or after every few of them where there are many, and at the end.
        """
        epoch, rest = divmod(steps, self.steps_per_epoch)
        every = -(-self.epochs // MOST_EVALUATIONS)
        return rest == 0 and (epoch % every == 0 or epoch == self.epochs)
