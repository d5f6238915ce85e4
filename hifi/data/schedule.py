"""How long a run trains and at which learning rate, where its settings leave it open."""

from __future__ import annotations

from typing import Literal

from hifi.arguments import check_number

AUTO: Literal["auto"] = "auto"
LearningRate = float | Literal["auto"]

LEAST_EPOCHS = 3
LEAST_STEPS = 200  # so that few rows get enough of them; docs/decisions/learning-rate.md
_RATE = 1.5e-3  # measured from 64 rows to thousands; docs/decisions/learning-rate.md

_NAME = "learning_rate"
_LIMIT = f"a number above 0, or {AUTO!r}"


def choose_epochs(*, rows: int, batch_size: int) -> int:
    """Return the number of epochs of a run that names none.

    Args:
        rows: of the training split.
        batch_size: samples per step.
    """
    steps_per_epoch = -(-rows // batch_size)
    return max(LEAST_EPOCHS, -(-LEAST_STEPS // steps_per_epoch))


def choose_learning_rate(*, steps: int) -> float:  # noqa: ARG001 - TODO
    """Return the peak learning rate of a run that names none.

    Args:
        steps: of the run.
    """
    return _RATE


def check_learning_rate(value: object) -> LearningRate:
    """Check a learning rate and return it as plain Python.

    Raises:
        InvalidArgumentError: neither ``auto`` nor a finite number above 0.
    """
    if isinstance(value, str) and value == AUTO:
        return AUTO
    return check_number(_NAME, value, is_allowed=lambda rate: rate > 0, limit=_LIMIT)


def parse_learning_rate(text: str) -> object:
    """Parse the text of an option: a number; any other text is returned unchanged."""
    try:
        return float(text)
    except ValueError:
        return text
