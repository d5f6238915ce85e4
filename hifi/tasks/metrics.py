"""Metrics: accuracy, F1, Matthews, Pearson and Spearman correlation; higher is better.

All of them are finite: constant predictions have correlation 0, without a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def accuracy(targets: Integers, predictions: Integers) -> float:
    """Return the share of correct predictions, in 0..1."""
    return float(sklearn_metrics.accuracy_score(targets, predictions))


def f1(targets: Integers, predictions: Integers, *, num_classes: int) -> float:
    """Return the harmonic mean of precision and recall, in 0..1.

    Args:
        targets: class indices ``[n]``.
        predictions: class indices ``[n]``.
        num_classes: of two classes the **last** is the positive one (label 1 of 0 and 1; of texts
            the last in alphabetical order); with more classes their F1 are averaged (macro), over
            those that occur in targets or predictions, so that a class missing in validation does
            not lower the result.
    """
    if num_classes == 2:
        return float(sklearn_metrics.f1_score(targets == 1, predictions == 1, zero_division=0.0))
    macro = sklearn_metrics.f1_score(targets, predictions, average="macro", zero_division=0.0)
    return float(macro)


def matthews(targets: Integers, predictions: Integers) -> float:
    """Return the Matthews correlation of two classifications, in -1..1."""
    if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(sklearn_metrics.matthews_corrcoef(targets, predictions))


def pearson(targets: Floats, predictions: Floats) -> float:
    """Return the linear correlation, in -1..1."""
    return _correlation(stats.pearsonr, targets, predictions)


def spearman(targets: Floats, predictions: Floats) -> float:
    """Return the rank correlation, in -1..1."""
    return _correlation(stats.spearmanr, targets, predictions)


def _correlation(
    statistic: Callable[[Floats, Floats], tuple[float, float]],
    targets: Floats,
    predictions: Floats,
) -> float:
    if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: an inaccurate value, or NaN
        value = float(statistic(targets, predictions)[0])
    return value if math.isfinite(value) else 0.0


def measure_classes(
    names: Sequence[str], targets: Integers, predictions: Integers, *, num_classes: int
) -> dict[str, float]:
    """Compute the named metrics of class indices ``[n]``; a new metric is an entry here."""
    known: dict[str, Callable[[Integers, Integers], float]] = {
        "accuracy": accuracy,
        "f1": partial(f1, num_classes=num_classes),
        "matthews": matthews,
    }
    return {name: known[name](targets, predictions) for name in names}


def measure_numbers(names: Sequence[str], targets: Floats, predictions: Floats) -> dict[str, float]:
    """Compute the named metrics of numbers ``[n]``; a new metric is an entry here."""
    known = {"pearson": pearson, "spearman": spearman}
    return {name: known[name](targets, predictions) for name in names}
