"""Check numeric arguments of any type and convert them to plain Python numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from operator import index
from typing import Any

from hifi.errors import InvalidArgumentError

_MOST = 2**63 - 1  # the largest that safetensors headers, JSON readers and torch's seeds can hold


def as_integer(value: Any) -> int | None:  # noqa: ANN401 - any caller's value
    """Convert any integer type, including numpy's, to int; return None for bool and other types."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def check_integer(param: str, value: object, *, least: int) -> int:
    """Check an integer and return it as an int.

    Args:
        param: the argument's name, for the error.
        value: the caller's value.
        least: the smallest allowed value.

    Raises:
        InvalidArgumentError: not an integer, below ``least``, or of more than 63 bits.
    """
    integer = as_integer(value)
    if integer is None or not least <= integer <= _MOST:
        limit = f"an integer of at least {least} and below 2**63"
        raise InvalidArgumentError(param, value=value, limit=limit)
    return integer


def check_count(param: str, value: object, *, most: int | None, of: str) -> int:
    """Check a count and return it as an int.

    Args:
        param: the argument's name, for the error.
        value: the caller's value.
        most: the largest allowed value; None for no limit.
        of: the things that are counted, in words.

    Raises:
        InvalidArgumentError: not an integer, below 1 or above ``most``.
    """
    count = as_integer(value)
    if count is None or count < 1 or (most is not None and count > most):
        limit = "an integer from 1" if most is None else f"an integer from 1 to the {most} {of}"
        raise InvalidArgumentError(param, value=value, limit=limit)
    return count


def check_number(
    param: str, value: object, *, is_allowed: Callable[[float], bool], limit: str
) -> float:
    """Check a finite number of any real type and return it as a float.

    Args:
        param: the argument's name, for the error.
        value: the caller's value.
        is_allowed: returns whether the number is within its range.
        limit: that range in words, for the error.

    Raises:
        InvalidArgumentError: not a number, a bool, not finite, or outside its range.
    """
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):  # larger than a float can hold
            number = float(value)
    if not math.isfinite(number) or not is_allowed(number):
        raise InvalidArgumentError(param, value=value, limit=limit)
    return number
