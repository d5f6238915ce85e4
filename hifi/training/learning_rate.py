"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hifi.data.settings import Hyperparameters


def learning_rate_at(step: int, *, total_steps: int, settings: Hyperparameters) -> float:
    """Return the learning rate of one step.

    Args:
        step: from 0; no step has the rate 0.
        total_steps: of the whole run.
        settings: the hyperparameters.
    """
    warmup = math.ceil(total_steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * (total_steps - step) / (total_steps - warmup)
