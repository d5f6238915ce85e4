"""The task types that can be fine-tuned, one file each, and the inference of a task from data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hifi.data import task_types as declared
from hifi.data.columns import profile_split
from hifi.data.inference import infer_task
from hifi.data.spec import TaskSpec
from hifi.tasks.base import Batch, EncodedInput, Encoder, Examples, Sample, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from hifi.data.profile import DatasetProfile

__all__ = [
    "Batch",
    "EncodedInput",
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


def task_types() -> tuple[str, ...]:
    """Return the names of the supported task types."""
    return tuple(each.name for each in declared.task_types())


def get_task(name: str) -> type[Task]:
    """Return the torch part of a task type, by its name in a job spec.

    Raises:
        TaskNotSupportedError: the type is unknown or not supported yet.
    """
    module, _, attribute = declared.find_task_type(name).implementation.partition(":")
    task: type[Task] = getattr(import_module(module), attribute)
    return task


def infer(spec: TaskSpec, dataset: Dataset) -> TaskSpec:
    """Complete a task from the columns of the training split.

    Raises:
        DataError, TaskNotSupportedError, InvalidArgumentError: as
            :func:`hifi.data.inference.infer_task`.
    """
    return infer_task(spec, profile_split(dataset))


def make_task(spec: TaskSpec, dataset: Dataset, *, profile: DatasetProfile | None = None) -> Task:
    """Build a task from a spec and the training split.

    Args:
        spec: missing parts are inferred, see :func:`infer`.
        dataset: the training split.
        profile: of the training split; by default made from its rows.

    Raises:
        DataError: the columns are ambiguous, or the labels cannot be used.
        TaskNotSupportedError: the task type is unknown or not supported yet.
        InvalidArgumentError: the task type does not have these columns or this metric.
    """
    spec = infer(spec, dataset) if profile is None else infer_task(spec, profile)
    task = get_task(str(spec.type)).of(spec, dataset)
    return task.with_answers({name: getattr(spec, name) for name in task.declaration.options})
