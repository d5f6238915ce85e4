"""Choose the probability from which on a row has a label, for all candidates at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hifi.tasks.metrics import Booleans, Floats, Integers

_CANDIDATES = np.arange(1, 100) / 100


def best_threshold(targets: Booleans, scores: Floats, *, metric: str, usual: float) -> float:
    """Return the threshold with the highest metric, in steps of 0.01.

    scikit-learn's metrics, computed for each candidate, took 28 s for 2,000 rows with 5,000 labels.

    Args:
        targets: ``[n, labels]``.
        scores: probabilities, ``[n, labels]``.
        metric: ``micro_f1``, ``macro_f1`` or ``subset_accuracy``.
        usual: of equally good thresholds, the closest to this one is returned.
    """
    # How many candidates a score reaches: a row has a label up to that candidate.
    reached = np.searchsorted(_CANDIDATES, scores, side="right")
    values = _METRICS[metric](targets, reached)
    best = np.flatnonzero(np.isclose(values, values.max(), rtol=0, atol=1e-12))
    return float(_CANDIDATES[best[np.argmin(np.abs(_CANDIDATES[best] - usual))]])


def _micro_f1(targets: Booleans, reached: Integers) -> Floats:
    hits, predicted = _count(targets, reached)
    return _f1(hits.sum(0), predicted.sum(0) + targets.sum())


def _macro_f1(targets: Booleans, reached: Integers) -> Floats:
    """Return the mean over the labels that occur, or are predicted, at each candidate."""
    hits, predicted = _count(targets, reached)
    total = predicted + targets.sum(0)[:, None]
    occurs = (total > 0).sum(0)
    means: Floats = _f1(hits, total).sum(0) / np.maximum(occurs, 1)
    return means


def _subset_accuracy(targets: Booleans, reached: Integers) -> Floats:
    """Return the share of rows that are right: above all other labels, and up to all their own."""
    size = len(_CANDIDATES)
    first = np.where(targets, 0, reached).max(1)
    end = np.where(targets, reached, size).min(1)
    is_ever = first < end
    changes = np.zeros(size + 1)
    np.add.at(changes, first[is_ever], 1)
    np.add.at(changes, end[is_ever], -1)
    shares: Floats = changes.cumsum()[:size] / len(targets)
    return shares


def _count(targets: Booleans, reached: Integers) -> tuple[Integers, Integers]:
    """Return the true and all predictions of each label at each candidate, ``[labels, 99]``."""
    labels, size = targets.shape[1], len(_CANDIDATES)
    cells = reached + (size + 1) * np.arange(labels)

    def count(chosen: Integers) -> Integers:
        counts = np.bincount(chosen, minlength=labels * (size + 1)).reshape(labels, size + 1)
        from_above: Integers = counts[:, ::-1].cumsum(1)[:, ::-1]
        return from_above[:, 1:]

    return count(cells[targets]), count(cells.ravel())


def _f1(hits: Integers, total: Integers) -> Floats:
    scores: Floats = 2 * hits / np.maximum(total, 1)
    return scores


_METRICS: Mapping[str, Callable[[Booleans, Integers], Floats]] = {
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "subset_accuracy": _subset_accuracy,
}
