"""How long a run trains and at which learning rate, where its settings leave it open."""

from __future__ import annotations

from typing import Literal

from hifi.arguments import check_number

AUTO: Literal["auto"] = "auto"
LearningRate = float | Literal["auto"]

# docs/decisions/learning-rate.md has what was measured.
LEAST_EPOCHS = 3
LEAST_STEPS = 100
RATE_TIMES_WIDTH = 0.4
MOST_RATE = 1.0  # on a server

_NAME = "learning_rate"
_LIMIT = f"a number above 0, or {AUTO!r}"


def count_steps_per_epoch(*, rows: int, batch_size: int) -> int:
    """Return the number of batches in an epoch.

    Args:
        rows: of the training split.
        batch_size: samples per step; the last batch may have fewer.
    """
    return -(-rows // batch_size)


def choose_epochs(*, rows: int, batch_size: int) -> int:
    """Return the number of epochs of a run that names none.

    Args:
        rows: of the training split.
        batch_size: samples per step.
    """
    steps = count_steps_per_epoch(rows=rows, batch_size=batch_size)
    return max(LEAST_EPOCHS, -(-LEAST_STEPS // steps))


def choose_learning_rate(*, hidden_size: int) -> float:
    """Return the peak learning rate of a run that names none: in inverse proportion to the width.

    AdamW moves every weight by about the learning rate, and what a layer computes by that times its
    width. So the rate that suits one model suits another after division by the width.

    Args:
        hidden_size: D, the backbone's hidden size.

    Source: Yang et al., "Tensor Programs V" (arXiv 2203.03466), Tab. 3, hidden weights with Adam.
    """
    return RATE_TIMES_WIDTH / hidden_size


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
