"""The hyperparameters of a fine-tune, their ranges, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hifi.arguments import check_integer, check_number

if TYPE_CHECKING:
    from hifi.backbones.devices import Precision

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda rate: rate > 0, "a number above 0"),
    "warmup_ratio": (lambda share: 0 <= share <= 1, "a number from 0 to 1"),
    "weight_decay": (lambda decay: decay >= 0, "a number of at least 0"),
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How to train; they travel in the head delta.

    Attributes:
        epochs: passes over the training split.
        learning_rate: the highest; it rises linearly from 0 and falls linearly to 0.
        batch_size: samples of a step.
        max_length: tokens of a text, or of a pair, at most.
        warmup_ratio: share of the steps in which the learning rate rises, 0 to 1.
        weight_decay: of AdamW, on matrices; biases and norms are not decayed.
        seed: of the task head, the calibration samples, the order of the data and dropout.
        precision: dtype of the frozen backbone; tuned rows and task head are float32 anyway.
        early_stopping_patience: stop after so many evaluations without gain; None never stops.

    Raises:
        InvalidArgumentError: a value outside its range.
    """

    epochs: int = 3
    learning_rate: float = 3e-4
    batch_size: int = 32
    max_length: int = 128
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    seed: int = 0
    precision: Precision = "auto"
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        plain: dict[str, int | float] = {
            name: check_integer(name, getattr(self, name), least=least)
            for name, least in {"epochs": 1, "batch_size": 1, "max_length": 1, "seed": 0}.items()
        }
        if self.early_stopping_patience is not None:
            plain["early_stopping_patience"] = check_integer(
                "early_stopping_patience", self.early_stopping_patience, least=1
            )
        for name, (is_allowed, limit) in _RANGES.items():
            value = getattr(self, name)
            plain[name] = check_number(name, value, is_allowed=is_allowed, limit=limit)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def describe(self) -> dict[str, Any]:
        """Give the hyperparameters as plain JSON."""
        return asdict(self)

    def learning_rate_at(self, step: int, *, total_steps: int) -> float:
        """Give the learning rate of one step.

        Args:
            step: from 0; no step has the rate 0.
            total_steps: of the whole run.
        """
        warmup = math.ceil(total_steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (total_steps - step) / (total_steps - warmup)
