"""Words in tokenised texts: which token answers for a word, and where the word is in the text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from hifi.data.characters import end_of_character, is_inside_word
from hifi.tasks.windows import trim_offsets

_Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WordUnits:
    """The words of a text, each answered by its first token.

    In scripts without upper and lower case, which may not divide words by spaces, each token is
    taken for a word.

    Attributes:
        tokens: the first token of each word, of the text itself, ``[U]``.
        starts: the first character of each word, ``[U]``.
        ends: one after its last character, ``[U]``.
    """

    tokens: _Integers
    starts: _Integers
    ends: _Integers

    def __len__(self) -> int:
        return len(self.tokens)


def find_units(text: str, offsets: Sequence[tuple[int, int]]) -> WordUnits:
    """Find the words of a text.

    Args:
        text: the text.
        offsets: the characters of each of its tokens.
    """
    units: list[list[int]] = []
    for token, (start, short_end) in enumerate(trim_offsets(text, offsets)):
        if start == short_end:
            continue
        end = end_of_character(text, short_end)
        last = units[-1][2] if units else -1
        if start < last or (start == last and is_inside_word(text, start)):
            units[-1][2] = max(end, last)
        else:
            units.append([token, start, end])
    return _units(units)


def find_given_units(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> WordUnits:
    """Find given words in the text that they form together, joined by spaces.

    Words of which the tokenizer reads nothing have no unit.

    Args:
        words: of the text.
        offsets: the characters of each of its tokens.
    """
    starts = word_starts(words)
    units: list[list[int]] = []
    last = -1
    for token, (start, end) in enumerate(trim_offsets(" ".join(words), offsets)):
        word = bisect_right(starts, start) - 1
        if start == end or word == last:
            continue
        last = word
        units.append([token, starts[word], starts[word] + len(words[word])])
    return _units(units)


def word_starts(words: Sequence[str]) -> list[int]:
    """Return the first character of each word in the text that they form, joined by spaces."""
    return list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))


def _units(units: Sequence[Sequence[int]]) -> WordUnits:
    table = np.array(units, dtype=np.int64).reshape(-1, 3)
    return WordUnits(table[:, 0], table[:, 1], table[:, 2])
