"""Canonical JSON: equal values are written as equal bytes, and parsing is strict."""

from __future__ import annotations

import json
import math
from typing import Any

from hifi.errors import InvalidArgumentError

_QUOTED_CHARACTERS = 80


def canonical_json(value: object) -> bytes:
    """Serialise a value so that equal values give equal bytes: sorted keys, no spaces, UTF-8.

    Args:
        value: anything that the standard ``json`` module writes; tuples become lists.

    Raises:
        InvalidArgumentError: NaN, infinity, or a type, a text or a depth that JSON cannot hold.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        limit = f"finite JSON values ({error})"
        raise InvalidArgumentError("metadata", value=_beginning(value), limit=limit) from error


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object more strictly than ``json.loads``.

    Args:
        text: untrusted.

    Raises:
        InvalidArgumentError: not a JSON object, a repeated key, a number that is not finite,
            nesting or numbers beyond what Python parses, or a text that is not UTF-8.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        limit = f"a JSON object ({error})"
        raise InvalidArgumentError("metadata", value=_beginning(text), limit=limit) from error
    if not isinstance(value, dict):
        raise InvalidArgumentError("metadata", value=_beginning(text), limit="a JSON object")
    return value


def _beginning(value: object) -> str:
    """Return the beginning of a text, or the type of any other value, to quote in an error."""
    if not isinstance(value, str):
        return type(value).__name__
    return value if len(value) <= _QUOTED_CHARACTERS else value[:_QUOTED_CHARACTERS] + "…"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"keys appear twice: {', '.join(map(repr, repeated))}")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
