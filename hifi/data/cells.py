"""Cells of delimited files: texts, and what all cells of a column look like.

A delimited file does not say what its cells are; their use does. Texts are the cells as they are,
targets any notation of a number. Classes are integers or booleans where no two spellings could
become one class, else texts; ``1.0`` is the class 1 where the user says that it is a class. A
validation split is read by the classes of the training split and not by its own looks.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.types import first_true

Looks = Literal["null", "int64", "float64", "bool", "string"]

PADDING = " \t"  # what may stand around a number
# Cells without a number in a column of numbers, as pandas and pyarrow have them.
MISSING = (
    *("", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
_WHOLE = r"[+-]?[0-9]+"
_INTEGER = r"0|-?[1-9][0-9]{0,17}"  # the one notation of a number, of those that fit an int64
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
BOOLEANS = (r"true|false", r"True|False", r"TRUE|FALSE")
# What most numbers look like, and surely hold: finite in 32 bits; whole. The rest is looked at.
_PLAIN = r"[+-]?(?:[0-9]{1,38}\.?[0-9]*|\.[0-9]+)(?:[eE]-[0-9]+)?"
_PLAINLY_WHOLE = r"[+-]?[0-9]{1,300}(?:\.0*)?"
MOST_FLOAT32 = float(np.finfo(np.float32).max)


def number(cell: str) -> float | str | None:
    """Read a cell in any notation of a number; one that holds none stays as it is."""
    word = cell.strip(PADDING)
    if word in MISSING:
        return None
    return float(word) if re.fullmatch(_NUMBER, word) else cell


class Appearance:
    """What the cells of a column look like, learnt piece by piece.

    Rows are numbered from 1. Those of a column that is known to hold texts are not looked for any
    further: nobody asks for numbers after the first cell that is none.

    Attributes:
        missing: the first cell that stands for nothing in a column of numbers.
        not_number: the first that holds no number, and the cell.
        not_finite: the first whose number 32 bits do not hold, and the number.
    """

    def __init__(self) -> None:
        self.missing: int | None = None
        self.not_number: tuple[int, str] | None = None
        self.not_finite: tuple[int, float] | None = None
        self._has_words = False
        self._all = dict.fromkeys((_WHOLE, _INTEGER, _NUMBER, *BOOLEANS), True)
        self._are_whole = True

    def add(self, cells: pa.Array, first_row: int) -> None:
        """Look at a piece of the column."""
        if not any(self._all.values()):
            return
        words = pc.ascii_trim(cells, PADDING)
        missing = pc.is_in(words, value_set=pa.array(MISSING))
        place = first_true(missing)
        if place is not None:
            if self.missing is None:
                self.missing = first_row + place
            present = words.filter(pc.invert(missing))
        else:
            present = words
        if len(present) == 0:
            return
        self._has_words = True
        if self._all[_INTEGER] and _all_match(present, _INTEGER):  # then all is said
            self._all.update(dict.fromkeys(BOOLEANS, False))
            return
        self._all[_INTEGER] = False
        if self.not_number is None and not _all_match(present, _PLAIN):
            self._look_for_numbers(cells, words, first_row)
        self._match(present)

    def _look_for_numbers(self, cells: pa.Array, words: pa.Array, first_row: int) -> None:
        """Find the first word that is no finite number and not missing."""
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


def _are_whole(words: pa.Array) -> bool:
    """Tell whether numbers are whole; those in plain notation are not looked at one by one."""
    others = words.filter(pc.invert(_matches(words, _PLAINLY_WHOLE)))
    return all(float(word.as_py()).is_integer() for word in others)


def _all_match(words: pa.Array, pattern: str) -> bool:
    return bool(pc.all(_matches(words, pattern)).as_py())


def _matches(words: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(words, f"^(?:{pattern})$")
