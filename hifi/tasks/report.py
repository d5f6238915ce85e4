"""The report of classes or labels: the scores of each, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from hifi.errors import shorten

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

MOST_CLASSES = 50  # in a report, whose JSON then has about 15 KB: jobs are listed by the hundred
_LABEL_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How well one class is found.

    Attributes:
        label: its name; longer ones are shortened to 100 characters.
        precision: the share of its rows among those predicted as it; 0 if there are none.
        recall: the share of those predicted as it among its rows; 0 if it has none.
        f1: the harmonic mean of both; 0 if both are.
        support: the number of its rows.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """The scores of each class, and the confusion matrix.

    Attributes:
        split: the measured one: ``test`` or ``validation``.
        classes: the number of classes of the task.
        per_class: in the order of the labels. Of more than 50 classes, the 50 with the most rows
            in the split; of equally many rows, the first ones.
        confusion: the number of rows by true class (row) and predicted class (column), in the order
            of ``per_class``. Of more than 50 classes, the last row and column are all others
            together, so that the sum is always the number of rows. None for labels of which a row
            can have several.
    """

    split: str
    classes: int
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "split": self.split,
            "classes": self.classes,
            "per_class": [dict(vars(scores)) for scores in self.per_class],
            "confusion": None if self.confusion is None else [list(row) for row in self.confusion],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        matrix = document["confusion"]
        return cls(
            split=document["split"],
            classes=document["classes"],
            per_class=tuple(ClassScores(**scores) for scores in document["per_class"]),
            confusion=None if matrix is None else tuple(map(tuple, matrix)),
        )


def report_classes(
    names: Sequence[str], targets: Integers, predictions: Integers, *, split: str
) -> ClassReport:
    """Compare predicted classes with the true ones.

    Args:
        names: of all classes, in the order of their indices.
        targets: class indices ``[n]``.
        predictions: class indices ``[n]``.
        split: that was measured.
    """
    count = len(names)
    shown = _most_frequent(np.bincount(targets, minlength=count))
    place = np.full(count, len(shown))  # of all others
    place[shown] = np.arange(len(shown))
    places = np.arange(len(shown) + (count > len(shown)))
    matrix = confusion_matrix(place[targets], place[predictions], labels=places)
    return ClassReport(
        split=split,
        classes=count,
        per_class=_score(names, targets, predictions, shown=shown),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
    )


def report_label_sets(
    names: Sequence[str], targets: Booleans, predictions: Booleans, *, split: str
) -> ClassReport:
    """Compare predicted sets of labels with the true ones.

    Args:
        names: of all labels, in the order of the logits.
        targets: ``[n, labels]``.
        predictions: ``[n, labels]``.
        split: that was measured.
    """
    shown = _most_frequent(targets.sum(0))
    return ClassReport(
        split=split,
        classes=len(names),
        per_class=_score(names, targets, predictions, shown=shown),
        confusion=None,
    )


def report_entities(
    types: Sequence[str], *, right: Integers, found: Integers, wanted: Integers, split: str
) -> ClassReport:
    """Report how many entities of each type are found.

    Args:
        types: of entities.
        right: entities that are found with their words and their type, ``[types]``.
        found: entities that are found, ``[types]``.
        wanted: entities of the data, ``[types]``.
        split: that was measured.
    """
    shown = _most_frequent(wanted)
    precision = right / np.maximum(found, 1)
    recall = right / np.maximum(wanted, 1)
    f1 = 2 * right / np.maximum(found + wanted, 1)
    return ClassReport(
        split=split,
        classes=len(types),
        per_class=tuple(
            ClassScores(
                label=shorten(types[index], characters=_LABEL_CHARACTERS),
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(wanted[index]),
            )
            for index in shown
        ),
        confusion=None,
    )


def _most_frequent(rows: Integers) -> Integers:
    """Return the indices of the classes with the most rows, in increasing order."""
    return np.sort(np.argsort(-rows, kind="stable")[:MOST_CLASSES])


def _score(
    names: Sequence[str],
    targets: Integers | Booleans,
    predictions: Integers | Booleans,
    *,
    shown: Integers,
) -> tuple[ClassScores, ...]:
    """Return the scores of some classes."""
    scores = precision_recall_fscore_support(
        targets, predictions, labels=shown, average=None, zero_division=0.0
    )
    return tuple(
        ClassScores(
            label=shorten(names[index], characters=_LABEL_CHARACTERS),
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
            support=int(support),
        )
        for index, precision, recall, f1, support in zip(shown, *scores, strict=True)
    )
