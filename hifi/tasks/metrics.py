"""Metrics of classes, of sets of labels and of numbers; higher is better.

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
Booleans = NDArray[np.bool_]


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


def micro_f1(targets: Booleans, predictions: Booleans) -> float:
    """Return the F1 of all pairs of a row and a label together, in 0..1.

    Args:
        targets: ``[n, labels]``.
        predictions: ``[n, labels]``.
    """
    found = sklearn_metrics.f1_score(targets, predictions, average="micro", zero_division=0.0)
    return float(found)


def macro_f1(targets: Booleans, predictions: Booleans) -> float:
    """Return the mean F1 of the labels, in 0..1; of those that occur in either.

    Args:
        targets: ``[n, labels]``.
        predictions: ``[n, labels]``.
    """
    occurs = targets.any(0) | predictions.any(0)
    if not occurs.any():
        return 0.0
    scores = sklearn_metrics.f1_score(targets, predictions, average=None, zero_division=0.0)
    return float(np.mean(scores[occurs]))


def subset_accuracy(targets: Booleans, predictions: Booleans) -> float:
    """Return the share of rows whose labels are all right and complete, in 0..1.

    Args:
        targets: ``[n, labels]``.
        predictions: ``[n, labels]``.
    """
    return float((targets == predictions).all(1).mean())


def mean_average_precision(targets: Booleans, scores: Floats) -> float:
    """Return the mean over the labels of the area under the precision-recall steps, in 0..1.

    Args:
        targets: ``[n, labels]``; labels without a row are left out.
        scores: ``[n, labels]``, higher for rows that more likely have the label.
    """
    occurs = targets.any(0)
    if not occurs.any():
        return 0.0
    areas = [
        sklearn_metrics.average_precision_score(truth, score)
        for truth, score in zip(targets.T[occurs], scores.T[occurs], strict=True)
    ]
    return float(np.mean(areas))


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


def measure_label_sets(
    names: Sequence[str], targets: Booleans, scores: Floats, *, threshold: float
) -> dict[str, float]:
    """Compute the named metrics of rows with several labels; a new metric is an entry here.

    Args:
        names: of the metrics.
        targets: ``[n, labels]``.
        scores: probabilities, ``[n, labels]``.
        threshold: from which on a row is predicted to have a label.
    """
    predictions = scores >= threshold
    known: dict[str, Callable[[], float]] = {
        "micro_f1": partial(micro_f1, targets, predictions),
        "macro_f1": partial(macro_f1, targets, predictions),
        "mean_average_precision": partial(mean_average_precision, targets, scores),
        "subset_accuracy": partial(subset_accuracy, targets, predictions),
    }
    return {name: known[name]() for name in names}


def measure_numbers(names: Sequence[str], targets: Floats, predictions: Floats) -> dict[str, float]:
    """Compute the named metrics of numbers ``[n]``; a new metric is an entry here."""
    known = {"pearson": pearson, "spearman": spearman}
    return {name: known[name](targets, predictions) for name in names}
