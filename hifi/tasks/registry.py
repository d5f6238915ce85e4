"""The task types that can be fine-tuned, found by the name in a job spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.errors import TaskNotSupportedError
from hifi.tasks.classification import Classification
from hifi.tasks.image_classification import ImageClassification
from hifi.tasks.regression import Regression

if TYPE_CHECKING:
    from hifi.tasks.base import Task

_TASKS: dict[str, type[Task]] = {
    task.type: task for task in (Classification, Regression, ImageClassification)
}
_PLANNED = ("question-answering", "multiple-choice", "token-classification", "causal-lm")


def task_types() -> tuple[str, ...]:
    """Name the task types that are built."""
    return tuple(_TASKS)


def get_task(name: str) -> type[Task]:
    """Find a task type by its name in a job spec.

    Raises:
        TaskNotSupportedError: no such type, or one that is not built yet.
    """
    task = _TASKS.get(name)
    if task is None:
        state = "is not built yet" if name in _PLANNED else "is unknown"
        raise TaskNotSupportedError(f"task type {name!r} {state}; there are: {', '.join(_TASKS)}")
    return task
