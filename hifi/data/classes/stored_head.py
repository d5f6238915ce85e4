"""The task head that a checkpoint brings, and whether it fits a task's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hifi.data.task_types import MULTI_LABEL_PROBLEM


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """The labels of a checkpoint's task head.

    Attributes:
        num_labels: number of its logits.
        names: of its labels, in the order of the logits; None if they are only numbered.
        problem_type: what the logits mean, as transformers' configurations call it; None if
            unknown.
    """

    num_labels: int
    names: tuple[str, ...] | None
    problem_type: str | None = None

    @classmethod
    def of(
        cls, id2label: Mapping[Any, str] | None, *, problem_type: str | None = None
    ) -> StoredHead:
        """Read the labels of a transformers configuration.

        transformers numbers labels without names ``LABEL_0``, ``LABEL_1``, …: these are no names.
        """
        labels = {int(index): str(name) for index, name in (id2label or {}).items()}
        numbered = {index: f"LABEL_{index}" for index in labels}
        names = tuple(labels[index] for index in sorted(labels))
        return cls(
            num_labels=len(names),
            names=None if labels == numbered else names,
            problem_type=problem_type,
        )

    def means_as(self, problem_type: str | None) -> bool:
        """Return whether the head's labels exclude each other as those of a task, or do not.

        A head without a known problem type has one label for each row, as most checkpoints have.
        """
        return (self.problem_type == MULTI_LABEL_PROBLEM) == (problem_type == MULTI_LABEL_PROBLEM)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a checkpoint's task head fits a task.

    Attributes:
        rows: the head's logit of each of the task's labels, in the task's order.
        names: the names that answers use; None if the labels of the data are the names.
    """

    rows: tuple[int, ...]
    names: tuple[str, ...] | None = None


def fit_labels(
    head: StoredHead,
    *,
    classes: Sequence[str | int] | None,
    num_labels: int,
    problem_type: str | None = None,
) -> Fit | None:
    """Return how a checkpoint's task head fits a task; None if it does not.

    It fits if both have the same label names, in any order. It also fits if the data's labels are
    the integers 0..n-1 and the head has n labels: label i is then logit i, with the head's name
    unless two of its labels have the same (ImageNet has two cranes). Without classes (a
    regression), the number of logits decides.

    Args:
        head: the checkpoint's.
        classes: the labels of the data, in the order of the task's logits; None without classes.
        num_labels: the number of the task's logits.
        problem_type: of the task.
    """
    if head.num_labels != num_labels or not head.means_as(problem_type):
        return None
    in_order = tuple(range(num_labels))
    if classes is None:
        return Fit(rows=in_order)
    row_of = {name: row for row, name in enumerate(head.names or ())}
    labels = [str(label) for label in classes]
    are_distinct = len(row_of) == num_labels
    if are_distinct and set(labels) == row_of.keys():
        return Fit(rows=tuple(row_of[label] for label in labels))
    if tuple(classes) == in_order:
        return Fit(rows=in_order, names=head.names if are_distinct else None)
    return None
