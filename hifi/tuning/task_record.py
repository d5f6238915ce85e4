"""What a head delta of an own training loop records of its task: the caller's and the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hifi.data.classes.stored_head import StoredHead
from hifi.data.task_types import find_task_type
from hifi.errors import InvalidArgumentError, TaskNotSupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hifi.data.task_types import TaskType

Labels = Sequence[str | int]


@dataclass(frozen=True)
class TaskFacts:
    """A task and its labels, as a head delta records them.

    Attributes:
        task: plain JSON; None if the caller named no task.
        labels: the classes in the order of the logits; None if they have no names.
    """

    task: Mapping[str, Any] | None
    labels: Labels | None


def complete_task(
    task: Mapping[str, Any] | None, labels: Labels | None, *, config: PreTrainedConfig
) -> TaskFacts:
    """Add what a model's configuration knows of its task: labels, their number, problem type.

    Args:
        task: what the caller records; its values win.
        labels: the classes in the order of the logits; by default the configuration's ``id2label``,
            unless it only numbers them or the task has no classes.
        config: of a model with a task head.

    Raises:
        InvalidArgumentError: the caller and the configuration contradict each other.
    """
    if task is None:
        return TaskFacts(None, _own_labels(config) if labels is None else labels)
    kind = _known_type(task)
    has_classes = kind is None or kind.has_classes
    if labels is None and has_classes:
        labels = _own_labels(config)
    declared = None if kind is None else kind.problem_type
    problem = task.get("problem_type", config.problem_type or declared)
    count = config.num_labels
    if kind is not None and kind.logits == "choice":  # one, whatever the configuration says
        count = kind.num_labels
    completed = {"num_labels": count, **task}
    if problem is not None:
        completed["problem_type"] = problem
    _check_number(completed["num_labels"], labels=labels, kind=kind, count=count)
    if labels is not None and not has_classes:
        limit = f"None: a {task['type']} task has no classes"
        raise InvalidArgumentError("labels", value=labels, limit=limit)
    if declared not in (None, problem):
        limit = f"{declared!r} for a {task['type']} task; config.problem_type is "
        limit += repr(config.problem_type)
        raise InvalidArgumentError("problem_type", value=problem, limit=limit)
    return TaskFacts(completed, labels)


def _check_number(
    number: object, *, labels: Labels | None, kind: TaskType | None, count: int | None
) -> None:
    """Raise if the numbers of labels that are known differ.

    Args:
        number: what the caller records.
        labels: the classes.
        kind: the task's type, if it is known.
        count: the number of the model's logits.
    """
    if type(number) is not int or number != count:
        limit = f"{count}, the model's config.num_labels"
        raise InvalidArgumentError("num_labels", value=number, limit=limit)
    if kind is not None and kind.num_labels not in (None, number):
        limit = f"{kind.num_labels} for a {kind.name} task; the model has {number}"
        raise InvalidArgumentError("task", value=kind.name, limit=f"num_labels must be {limit}")
    if labels is not None and len(labels) != number:
        limit = f"{number} labels, as many as the model has logits"
        raise InvalidArgumentError("labels", value=list(labels), limit=limit)


def _known_type(task: Mapping[str, Any]) -> TaskType | None:
    """Return the declared task type; None for one that only the caller knows."""
    try:
        return find_task_type(str(task.get("type")))
    except TaskNotSupportedError:
        return None


def _own_labels(config: PreTrainedConfig) -> list[str] | None:
    """Return the labels of a configuration; None if it only numbers them."""
    names = StoredHead.of(config.id2label).names
    return None if names is None else list(names)
