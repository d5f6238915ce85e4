"""Numbers that callers give: whatever type they come in, checked and made plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from operator import index
from typing import Any

from hifi.errors import InvalidArgumentError

_MOST = 2**63 - 1  # what a safetensors header, JSON readers and torch's seeds can hold


def as_integer(value: Any) -> int | None:  # noqa: ANN401 - whatever a caller gave
    """Give an integer of any type, numpy's among them, as an int; None for all else, bools too."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def check_integer(param: str, value: object, *, least: int) -> int:
    """Give an integer as an int.

    Args:
        param: the argument's name, for the error.
        value: what was given.
        least: the smallest that is allowed.

    Raises:
        InvalidArgumentError: no integer, below ``least``, or of more than 63 bits.
    """
    integer = as_integer(value)
    if integer is None or not least <= integer <= _MOST:
        limit = f"an integer of at least {least} and below 2**63"
        raise InvalidArgumentError(param, value=value, limit=limit)
    return integer


def check_count(param: str, value: object, *, most: int | None, of: str) -> int:
    """Give a count as an int.

    Args:
        param: the argument's name, for the error.
        value: what was given.
        most: the largest that is allowed; None for no limit.
        of: what there are so many of, in words.

    Raises:
        InvalidArgumentError: no integer, below 1 or above ``most``.
    """
    count = as_integer(value)
    if count is None or count < 1 or (most is not None and count > most):
        limit = "an integer from 1" if most is None else f"an integer from 1 to the {most} {of}"
        raise InvalidArgumentError(param, value=value, limit=limit)
    return count


def check_number(
    param: str, value: object, *, is_allowed: Callable[[float], bool], limit: str
) -> float:
    """Give a finite number of any real type as a float.

    Args:
        param: the argument's name, for the error.
        value: what was given.
        is_allowed: tells whether the number is within its range.
        limit: that range in words, for the error.

    Raises:
        InvalidArgumentError: no number, a bool, not finite, or outside its range.
    """
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):  # more than a float holds
            number = float(value)
    if not math.isfinite(number) or not is_allowed(number):
        raise InvalidArgumentError(param, value=value, limit=limit)
    return number
