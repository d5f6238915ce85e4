"""The weights of the classes in the training loss, as callers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from hifi.arguments import as_integer, check_number
from hifi.errors import InvalidArgumentError, listed, quoted

BALANCED: Literal["balanced"] = "balanced"
ClassWeights = Literal["balanced"] | Mapping[str, float]

_NAME = "class_weights"
_LIMIT = f'{BALANCED!r}, or a weight above 0 for each label that needs one, {{"label": 2.5}}'


def check_class_weights(value: object) -> Literal["balanced"] | dict[str, float]:
    """Check weights and return them as plain Python.

    Args:
        value: ``balanced``, or a mapping of labels to numbers of any real type.

    Returns:
        ``balanced``, or floats by the labels' names: the label 1 is ``"1"``.

    Raises:
        InvalidArgumentError: another type, no label at all, a label that is neither a text nor an
            integer or that occurs twice, or a weight that is not a finite number above 0.
    """
    if isinstance(value, str) and value == BALANCED:
        return BALANCED
    if not isinstance(value, Mapping) or not value:
        raise InvalidArgumentError(_NAME, value=value, limit=_LIMIT)
    checked: dict[str, float] = {}
    for label, weight in value.items():
        known = label if isinstance(label, str) else as_integer(label)
        if known is None or str(known) in checked:
            limit = "each label once, as a text or an integer"
            raise InvalidArgumentError(_NAME, value={label: weight}, limit=limit)
        try:
            checked[str(known)] = check_number(_NAME, weight, is_allowed=_is_positive, limit="")
        except InvalidArgumentError as error:
            limit = f"the weight of {quoted(label)} must be a finite number above 0"
            raise InvalidArgumentError(_NAME, value={label: weight}, limit=limit) from error
    return checked


def _is_positive(weight: float) -> bool:
    return weight > 0


def parse_class_weights(text: str) -> object:
    """Parse the text of an option: JSON, or ``balanced``; any other text is returned unchanged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_task(weights: ClassWeights | None, *, has_classes: bool, task: str) -> None:
    """Refuse weights for a task that learns no classes.

    Args:
        weights: checked; None for none.
        has_classes: whether the task learns the classes of its label column.
        task: its type.

    Raises:
        InvalidArgumentError: there are weights, and no classes.
    """
    if weights is not None and not has_classes:
        limit = f"only for tasks that learn one class of each row, and {task} does not"
        raise InvalidArgumentError(_NAME, value=weights, limit=limit)


def check_labels(weights: ClassWeights | None, *, labels: Sequence[str | int]) -> None:
    """Refuse a weight of a class that the training split does not have.

    Args:
        weights: checked; None for none.
        labels: all classes of the training split.

    Raises:
        InvalidArgumentError: a label is unknown.
    """
    if weights is None or isinstance(weights, str):
        return
    known = dict.fromkeys(map(str, labels))
    for label, weight in weights.items():
        if label not in known:
            limit = f"no class of the training split is called so; known are {listed(list(known))}"
            raise InvalidArgumentError(_NAME, value={label: weight}, limit=limit)
