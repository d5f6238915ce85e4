"""The task types that can be fine-tuned; one file each, found by the name in a job spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.data import check_columns
from hifi.errors import InvalidArgumentError, TaskNotSupportedError
from hifi.tasks.base import Batch, Encoder, Examples, Task, TaskSpec
from hifi.tasks.classification import Classification
from hifi.tasks.image_classification import ImageClassification
from hifi.tasks.inference import infer
from hifi.tasks.regression import Regression

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Batch",
    "Encoder",
    "Examples",
    "Task",
    "TaskSpec",
    "get_task",
    "infer",
    "make_task",
]

_TASKS: dict[str, type[Task]] = {
    task.type: task for task in (Classification, Regression, ImageClassification)
}
_PLANNED = ("question-answering", "multiple-choice", "token-classification", "causal-lm")


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


def make_task(spec: TaskSpec, dataset: Dataset) -> Task:
    """Make a task of what the user says and what the training split shows.

    Args:
        spec: what is left out is inferred, see :func:`infer`.
        dataset: the training split.

    Raises:
        DataError: the columns leave a doubt, or the labels cannot be used.
        TaskNotSupportedError: no such task type, or one that is not built yet.
        InvalidArgumentError: columns or a metric that the task type does not have.
    """
    if spec.type is not None:
        get_task(spec.type)  # before its columns are looked for
    check_columns(dataset, spec.columns, split="train")
    spec = infer(spec, dataset)
    task = get_task(str(spec.type))
    wants_image = task is ImageClassification
    inputs = (spec.image,) if wants_image else spec.text
    if not inputs or (spec.image is not None) != wants_image:
        raise InvalidArgumentError(
            "image" if spec.image else "text",
            value=spec.image or spec.text,
            limit=f"{spec.type} reads {'an image column' if wants_image else 'text columns'}",
        )
    return task.from_data(
        dataset,
        inputs=tuple(name for name in inputs if name is not None),
        label=str(spec.label),
        metric=spec.metric,
    )
