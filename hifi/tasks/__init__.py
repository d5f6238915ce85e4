"""The task types that can be fine-tuned, one file each, and the task that the data tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.data.columns import profile_split
from hifi.data.inference import infer_task
from hifi.data.spec import TaskSpec
from hifi.tasks.base import Batch, Encoder, Examples, Sample, Task
from hifi.tasks.registry import get_task, task_types

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Batch",
    "Encoder",
    "Examples",
    "Sample",
    "Task",
    "TaskSpec",
    "get_task",
    "infer",
    "make_task",
    "task_types",
]


def infer(spec: TaskSpec, dataset: Dataset) -> TaskSpec:
    """Complete what the user said about the task by the columns of the training split.

    Raises:
        DataError, TaskNotSupportedError, InvalidArgumentError: as
            :func:`hifi.data.inference.infer_task`.
    """
    return infer_task(spec, profile_split(dataset))


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
    spec = infer(spec, dataset)
    return get_task(str(spec.type)).from_data(
        dataset,
        inputs=spec.text if spec.image is None else (spec.image,),
        label=str(spec.label),
        metric=spec.metric,
    )
