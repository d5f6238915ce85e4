"""The task types that can be fine-tuned, one file each, and the task that the data tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.data.spec import TaskSpec
from hifi.data.splits import check_columns
from hifi.errors import InvalidArgumentError
from hifi.tasks.base import Batch, Encoder, Examples, Task
from hifi.tasks.inference import infer
from hifi.tasks.registry import get_task, task_types

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
    "task_types",
]


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
    wants_image = task.input_kind == "image"
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
