"""Find rows with the same texts and different labels: one of them must be wrong, or undecidable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hifi.canonical import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HASH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Contradictions:
    """Rows with the same texts and different labels.

    Attributes:
        rows: how many labels must change at least until every text has one.
        example: numbers, from 1, of two rows with the same texts and different labels.
    """

    rows: int
    example: tuple[int, int]


def find_contradictions(
    texts: Iterable[Sequence[str]], labels: NDArray[np.int64]
) -> Contradictions | None:
    """Compare the labels of rows whose texts are the same.

    Args:
        texts: of each row, ``n`` of them.
        labels: of each row, ``[n]``, from 0.

    Returns:
        None if rows with the same texts have the same label.
    """
    hashes = np.frombuffer(b"".join(map(_hash, texts)), dtype=np.uint64)
    _, groups = np.unique(hashes, return_inverse=True)
    width = int(labels.max()) + 1
    pairs, counts = np.unique(groups * width + labels, return_counts=True)
    most = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    np.maximum.at(most, pairs // width, counts)
    rows = len(labels) - int(most.sum())
    if not rows:
        return None
    places, kinds = np.unique(pairs // width, return_counts=True)
    group = np.flatnonzero(groups == places[kinds > 1][0])
    other = group[labels[group] != labels[group[0]]][0]
    return Contradictions(rows=rows, example=(int(group[0]) + 1, int(other) + 1))


def _hash(texts: Sequence[str]) -> bytes:
    return hashlib.blake2b(canonical_json(list(texts)), digest_size=_HASH_BYTES).digest()
