"""The hyperparameters of a fine-tune, their ranges, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hifi.models import Precision

_MOST = 2**63 - 1


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
        for name in ("epochs", "batch_size", "max_length"):
            _check_integer(name, getattr(self, name), least=1)
        _check_integer("seed", self.seed, least=0)
        if self.early_stopping_patience is not None:
            _check_integer("early_stopping_patience", self.early_stopping_patience, least=1)
        _check_number("learning_rate", self.learning_rate)
        _check_number("weight_decay", self.weight_decay)
        _check_number("warmup_ratio", self.warmup_ratio, most=1.0)
        if self.learning_rate == 0:
            raise InvalidArgumentError("learning_rate", value=0, limit="above 0")

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


def _check_integer(name: str, value: object, *, least: int) -> None:
    if type(value) is not int or not least <= value <= _MOST:
        raise InvalidArgumentError(name, value=value, limit=f"an integer of at least {least}")


def _check_number(name: str, value: object, *, most: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or value == math.inf:  # type: ignore[operator]
        limit = f"a number from 0 to {most}" if math.isfinite(most) else "a number of at least 0"
        raise InvalidArgumentError(name, value=value, limit=limit)
