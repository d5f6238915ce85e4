"""Cells of delimited files: texts, and the type that all cells of a column look like.

A delimited file does not store types; the use of a column decides how its cells are read. A text is
the unchanged cell, a target is a number in any notation. A class is the unchanged cell too, unless
all cells of the column are booleans in one spelling, or integers, which may be written ``1.0``: one
cell in any other notation (``1E3``, ``+1``, ``01``) makes all classes texts. Blanks around integers
and booleans do not count. The other splits are read with the classes of the training split.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.types import first_true

Looks = Literal["null", "int64", "float64", "bool", "string"]

PADDING = " \t"  # allowed around a number
# Missing values in a column of numbers, as in pandas and pyarrow.
MISSING = (
    *("", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
_WHOLE = r"[+-]?[0-9]+"
_INTEGER = r"0|-?[1-9][0-9]{0,17}"  # the canonical notation, of integers that fit an int64
_INTEGRAL = rf"(?:{_INTEGER})(?:\.0*)?"  # an integer, also as programs write one as a float
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
BOOLEANS = (r"true|false", r"True|False", r"TRUE|FALSE")
# Notations that are certainly finite in 32 bits, or whole; all others are parsed.
_PLAIN = r"[+-]?(?:[0-9]{1,38}\.?[0-9]*|\.[0-9]+)(?:[eE]-[0-9]+)?"
_PLAINLY_WHOLE = r"[+-]?[0-9]{1,300}(?:\.0*)?"
MOST_FLOAT32 = float(np.finfo(np.float32).max)


def number(cell: str) -> float | str | None:
    """Parse a cell as a number in any notation; return None if missing, the cell if no number."""
    word = cell.strip(PADDING)
    if word in MISSING:
        return None
    return float(word) if re.fullmatch(_NUMBER, word) else cell


class Appearance:
    """What the cells of a column look like, updated batch by batch.

    Rows are numbered from 1. Numbers are not searched any further after the first cell that is
    not a number.

    Attributes:
        missing: row of the first missing value.
        not_number: row and cell of the first cell that is not a number.
        not_finite: row and number of the first number that is not finite in 32 bits.
        are_whole: whether all cells are numbers without a fraction.
    """

    def __init__(self) -> None:
        self.missing: int | None = None
        self.not_number: tuple[int, str] | None = None
        self.not_finite: tuple[int, float] | None = None
        self.are_whole = True
        self._has_words = False
        self._all = dict.fromkeys((_WHOLE, _INTEGER, _INTEGRAL, _NUMBER, *BOOLEANS), True)

    def add(self, cells: pa.Array, first_row: int) -> None:
        """Add a batch of the column."""
        if not any(self._all.values()):
            return
        words = pc.ascii_trim(cells, PADDING)
        missing = pc.is_in(words, value_set=pa.array(MISSING))
        row = first_true(missing, start=first_row)
        if self.missing is None:
            self.missing = row
        present = words if row is None else words.filter(pc.invert(missing))
        if len(present) == 0:
            return
        self._has_words = True
        if self._all[_INTEGER] and _all_match(present, _INTEGER):  # all other patterns follow
            self._all.update(dict.fromkeys(BOOLEANS, False))
            return
        self._all[_INTEGER] = False
        if self.not_number is None and not _all_match(present, _PLAIN):
            self._look_for_numbers(cells, words, first_row)
        self._match(present)

    def _look_for_numbers(self, cells: pa.Array, words: pa.Array, first_row: int) -> None:
        """Find the first words that are not numbers, or not finite."""
        for place, word in enumerate(words.to_pylist()):
            value = number(word)
            if isinstance(value, str):
                self.not_number = (first_row + place, cells[place].as_py())
                return
            if value is not None and not abs(value) <= MOST_FLOAT32 and self.not_finite is None:
                self.not_finite = (first_row + place, value)

    def _match(self, words: pa.Array) -> None:
        for pattern, holds in self._all.items():
            if holds:
                self._all[pattern] = _all_match(words, pattern)
        if self.are_whole:
            self.are_whole = self._all[_NUMBER] and _are_whole(words)

    @property
    def are_integral(self) -> bool:
        """Whether every cell is an integer, or one followed by ``.0``."""
        return self._has_words and self._all[_INTEGRAL]

    @property
    def looks(self) -> Looks:
        """The type of all cells; texts if integers would lose the notation of some."""
        if not self._has_words:
            return "null"
        if self._all[_WHOLE]:  # 007 and 7 must not become one class
            return "int64" if self._all[_INTEGER] else "string"
        if self._all[_NUMBER]:
            return "float64"
        return "bool" if any(self._all[spelling] for spelling in BOOLEANS) else "string"


def _are_whole(words: pa.Array) -> bool:
    """Return whether all numbers are whole; only those in unusual notation are parsed."""
    others = words.filter(pc.invert(_matches(words, _PLAINLY_WHOLE)))
    return all(float(word.as_py()).is_integer() for word in others)


def _all_match(words: pa.Array, pattern: str) -> bool:
    return bool(pc.all(_matches(words, pattern)).as_py())


def _matches(words: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(words, f"^(?:{pattern})$")
