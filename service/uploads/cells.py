"""Cells of delimited files: texts, and what all of a column look like.

The rules are the library's (``hifi.columns``), which the gateway does not import; a test holds the
two together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from service.uploads.columns import first_true

Looks = Literal["null", "int64", "float64", "bool", "string"]

PADDING = " \t"
MISSING = (
    *("", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
_WHOLE = r"[+-]?[0-9]+"
_INTEGER = r"0|-?[1-9][0-9]{0,17}"
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
BOOLEANS = (r"true|false", r"True|False", r"TRUE|FALSE")
# Surely whole, and surely finite in 32 bits, without a look at each.
_PLAINLY_WHOLE = r"[+-]?[0-9]{1,300}(?:\.0*)?"
_PLAINLY_FINITE = r"[+-]?[0-9]{0,38}\.?[0-9]*(?:[eE]-[0-9]+)?"


def number(cell: str) -> float | str | None:
    """Read a cell in any notation of a number; one that holds none stays as it is."""
    word = cell.strip(PADDING)
    if word in MISSING:
        return None
    return float(word) if re.fullmatch(_NUMBER, word) else cell


class Appearance:
    """What the cells of a column look like, learnt piece by piece."""

    def __init__(self) -> None:
        self._has_words = False
        self._all = dict.fromkeys((_WHOLE, _INTEGER, _NUMBER, *BOOLEANS), True)
        self._are_whole = True

    def add(self, words: pa.Array) -> None:
        """Look at words: cells without padding, those left out that are missing."""
        if len(words) == 0:
            return
        self._has_words = True
        for pattern, holds in self._all.items():
            if holds:
                self._all[pattern] = pc.all(_match(words, pattern)).as_py()
        if self._are_whole:
            self._are_whole = self._all[_NUMBER] and _are_whole(words)

    @property
    def looks(self) -> Looks:
        """The type that all cells could have; of notations that integers cannot keep, texts."""
        if not self._has_words:
            return "null"
        if self._all[_WHOLE]:  # 007 and 7 must not become one class
            return "int64" if self._all[_INTEGER] else "string"
        if self._all[_NUMBER]:
            return "float64"
        return "bool" if any(self._all[spelling] for spelling in BOOLEANS) else "string"

    @property
    def are_whole(self) -> bool:
        """Whether all cells are numbers without a fraction."""
        return self._are_whole


def trimmed(cells: pa.Array) -> pa.Array:
    """Take the padding off cells."""
    return pc.ascii_trim(cells, PADDING)


def are_missing(words: pa.Array) -> pa.Array:
    """Mark the words that stand for nothing in a column of numbers."""
    return pc.is_in(words, value_set=pa.array(MISSING))


def first_not_number(words: pa.Array, missing: pa.Array) -> int | None:
    """Find the first word that is no number and not missing."""
    return first_true(pc.invert(pc.or_(missing, _match(words, _NUMBER))))


def first_too_large(words: pa.Array, *, is_too_large: Callable[[float], bool]) -> int | None:
    """Find the first word whose number is not finite, or too large."""
    doubtful = pc.and_(_match(words, _NUMBER), pc.invert(_match(words, _PLAINLY_FINITE)))
    start = first_true(doubtful)
    if start is None:
        return None
    for place in range(start, len(words)):
        if doubtful[place].as_py() and is_too_large(float(words[place].as_py())):
            return place
    return None


def _are_whole(words: pa.Array) -> bool:
    """Say whether numbers are whole; those in plain notation are not looked at one by one."""
    others = words.filter(pc.invert(_match(words, _PLAINLY_WHOLE)))
    return all(float(word.as_py()).is_integer() for word in others)


def _match(words: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(words, f"^(?:{pattern})$")
