"""Entities among labelled words: found, counted and compared, as seqeval does by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hifi.data.tags import OUTSIDE, parse_tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WordLabels:
    """What the classes of words mean.

    Attributes:
        types: of the entities, in the order of the first label of each.
        type_of: the type of each label; -1 for ``O``, ``[labels]``.
        begins: whether a label begins an entity in any case, ``[labels]``.
        first: the label of an entity's first word, by type.
        other: the label of its other words, by type.
    """

    types: tuple[str, ...]
    type_of: Integers
    begins: NDArray[np.bool_]
    first: Integers
    other: Integers

    @classmethod
    def of(cls, labels: Sequence[str]) -> WordLabels:
        """Read labels: ``O``, ``B-`` and ``I-`` tags; or, without ``O``, one of each word."""
        if OUTSIDE not in labels:
            places = np.arange(len(labels))
            return cls(tuple(labels), places, np.ones(len(labels), dtype=bool), places, places)
        tags = {place: parse_tag(tag) for place, tag in enumerate(labels) if tag != OUTSIDE}
        types = tuple(dict.fromkeys(name for _, name in tags.values()))
        first = {name: place for place, (_, name) in reversed(tags.items())}
        other = first | {name: place for place, (letter, name) in tags.items() if letter == "I"}
        known = {name: place for place, name in enumerate(types)}
        type_of = np.full(len(labels), -1)
        type_of[list(tags)] = [known[name] for _, name in tags.values()]
        begins = np.zeros(len(labels), dtype=bool)
        begins[list(tags)] = [letter in ("B", "U") for letter, _ in tags.values()]
        return cls(
            types,
            type_of,
            begins,
            np.array([first[name] for name in types]),
            np.array([other[name] for name in types]),
        )

    @property
    def outside(self) -> int:
        """The label of words that are no entity; the first one if there is none."""
        outside = np.flatnonzero(self.type_of < 0)
        return int(outside[0]) if len(outside) else 0


@dataclass(frozen=True, eq=False)
class Entities:
    """Entities in a sequence of words.

    Attributes:
        first: the first word of each, ``[E]``.
        last: the last word of each, ``[E]``.
        types: ``[E]``.
    """

    first: Integers
    last: Integers
    types: Integers

    @property
    def keys(self) -> Integers:
        """A row for each entity, ``[E, 3]``, which is equal for equal entities."""
        return np.stack([self.first, self.last, self.types], axis=1)


def find_entities(labels: Integers, rows: Integers, meaning: WordLabels) -> Entities:
    """Return the entities that the labels of words mark; none reaches into another row.

    An ``I-`` label without one of its type before it begins an entity too.

    Args:
        labels: of the words, ``[U]``.
        rows: of the words, ``[U]``, in increasing order.
        meaning: of the labels.
    """
    types = meaning.type_of[labels]
    continues = np.zeros(len(labels), dtype=bool)
    is_same = (rows[1:] == rows[:-1]) & (types[1:] == types[:-1])
    continues[1:] = is_same & ~meaning.begins[labels[1:]]
    is_word = types >= 0
    first = np.flatnonzero(is_word & ~continues)
    ends = np.ones(len(labels), dtype=bool)
    ends[:-1] = ~continues[1:]
    return Entities(first, np.flatnonzero(is_word & ends), types[first])


@dataclass(frozen=True, eq=False)
class Agreement:
    """How many entities of each type are right, found and wanted, each ``[types]``."""

    right: Integers
    found: Integers
    wanted: Integers

    @classmethod
    def of(cls, found: Entities, wanted: Entities, *, types: int) -> Agreement:
        """Compare entities; one is right if its words and its type are."""
        known = set(map(tuple, wanted.keys.tolist()))
        is_right = np.array([tuple(key) in known for key in found.keys.tolist()], dtype=bool)

        def count(of: Integers) -> Integers:
            return np.bincount(of, minlength=types)

        return cls(count(found.types[is_right]), count(found.types), count(wanted.types))


def share(part: float, whole: float) -> float:
    """Return a share; 0 of nothing."""
    return float(part / whole) if whole else 0.0


def f1(precision: float, recall: float) -> float:
    """Return the harmonic mean; 0 if both are."""
    return share(2 * precision * recall, precision + recall)
