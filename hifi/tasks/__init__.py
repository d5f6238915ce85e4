"""The task types that can be fine-tuned, one file each, and the inference of a task from data."""

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
    """Complete a task from the columns of the training split.

    Raises:
        DataError, TaskNotSupportedError, InvalidArgumentError: as
            :func:`hifi.data.inference.infer_task`.
    """
    return infer_task(spec, profile_split(dataset))


def make_task(spec: TaskSpec, dataset: Dataset) -> Task:
    """Build a task from a spec and the training split.

    Args:
        spec: missing parts are inferred, see :func:`infer`.
        dataset: the training split.

    Raises:
        DataError: the columns are ambiguous, or the labels cannot be used.
        TaskNotSupportedError: the task type is unknown or not supported yet.
        InvalidArgumentError: the task type does not have these columns or this metric.
    """
    spec = infer(spec, dataset)
    return get_task(str(spec.type)).from_data(
        dataset,
        inputs=spec.text if spec.image is None else (spec.image,),
        label=str(spec.label),
        metric=spec.metric,
    )
