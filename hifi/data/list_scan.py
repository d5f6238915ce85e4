"""Scan columns of lists for what words, their tags and spans of characters need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.formats.limits import MAX_CHARACTERS, too_many_characters
from hifi.data.profile import Problem, first_of_rows
from hifi.data.tags import EDGE
from hifi.data.types import are_blank, first_true, is_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pair = tuple[str | int, str | int]
_MOST_PAIRS, _MOST_PAIR_BYTES = 100_000, 1 << 20  # of a column; beyond them it holds no tags
_EDGE_CODE = -2


@dataclass
class ListScan:
    """The lists of a column as words, or as the tags of words.

    Attributes:
        gap: the first row with an empty list, or with an entry that is missing or blank.
        too_long: the first row with too many characters for a task.
        pairs: the first row of each pair of entries that follow each other, ``EDGE`` included.
        has_all_pairs: whether there are few enough of them to be kept.
        are_numbers: whether the entries are integers.
        lengths: of the lists, ``[rows]``; 0 for a missing one.
    """

    gap: Problem | None = None
    too_long: Problem | None = None
    pairs: dict[Pair, int] = field(default_factory=dict)
    has_all_pairs: bool = True
    are_numbers: bool = False
    _lengths: list[NDArray[np.int64]] = field(default_factory=list)
    _pair_bytes: int = 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The lengths of the lists."""
        return np.concatenate([np.zeros(0, np.int64), *self._lengths])

    def add(self, array: pa.Array, entries: pa.Array, rows: NDArray[np.int64]) -> None:
        """Add a batch.

        Args:
            array: the lists.
            entries: of all lists.
            rows: of each entry, in increasing order.
        """
        first_row = 1 + sum(map(len, self._lengths))
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        self._lengths.append(lengths.astype(np.int64))
        if self.gap is None:
            self.gap = _first_gap(array, entries, rows, first_row=first_row)
        self.are_numbers = pa.types.is_integer(entries.type)
        if not self.are_numbers and not is_text(entries.type):
            return
        if is_text(entries.type) and self.too_long is None:
            sizes = pc.fill_null(pc.utf8_length(entries), 0).to_numpy(zero_copy_only=False)
            totals = np.bincount(rows - first_row, weights=sizes, minlength=len(array))
            if totals.max(initial=0) > MAX_CHARACTERS:
                place = int((totals > MAX_CHARACTERS).argmax())
                reason = too_many_characters(int(totals[place]))
                self.too_long = Problem(row=first_row + place, reason=reason)
        if self.has_all_pairs and len(entries):
            self._add_pairs(entries, rows)

    def _add_pairs(self, entries: pa.Array, rows: NDArray[np.int64]) -> None:
        coded = entries.dictionary_encode()
        if _size_of(coded.dictionary) > _MOST_PAIR_BYTES:  # texts, and no tags
            self._drop_pairs()
            return
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        begins = np.concatenate([[True], rows[1:] != rows[:-1]])
        before = np.where(begins, _EDGE_CODE, np.concatenate([[0], codes[:-1]]))
        ends = np.concatenate([rows[1:] != rows[:-1], [True]])
        first = np.concatenate([before, codes[ends]])
        second = np.concatenate([codes, np.full(ends.sum(), _EDGE_CODE)])
        where = np.concatenate([rows, rows[ends]])
        _, places = np.unique(np.stack([first, second]), axis=1, return_index=True)
        values = {_EDGE_CODE: EDGE}
        for place in sorted(places.tolist(), key=lambda place: where[place]):
            codes_here = int(first[place]), int(second[place])
            if -1 in codes_here:
                continue
            for code in codes_here:
                if code not in values:
                    values[code] = coded.dictionary[code].as_py()
            pair = values[codes_here[0]], values[codes_here[1]]
            if pair not in self.pairs:
                self.pairs[pair] = int(where[place])
                self._pair_bytes += sum(len(str(each)) for each in pair)
        if len(self.pairs) > _MOST_PAIRS or self._pair_bytes > _MOST_PAIR_BYTES:
            self._drop_pairs()

    def _drop_pairs(self) -> None:
        self.has_all_pairs = False
        self.pairs = {}


def _size_of(values: pa.Array) -> int:
    return (pc.sum(pc.binary_length(values)).as_py() or 0) if is_text(values.type) else 0


def _first_gap(
    array: pa.Array, entries: pa.Array, rows: NDArray[np.int64], *, first_row: int
) -> Problem | None:
    empty = first_true(pc.equal(pc.list_value_length(array), 0), start=first_row)
    missing = first_true(entries.is_null())
    blank = first_true(are_blank(entries))
    found = [
        (empty, "the list is empty"),
        (None if missing is None else int(rows[missing]), "the list has an entry without a text"),
        (None if blank is None else int(rows[blank]), "the list has an empty text"),
    ]
    return first_of_rows(found)


def first_unequal(first: ListScan, second: ListScan) -> int | None:
    """Return the first row whose lists differ in length, from 1; None if there is none."""
    places = np.flatnonzero(first.lengths != second.lengths)
    return int(places[0]) + 1 if len(places) else None
