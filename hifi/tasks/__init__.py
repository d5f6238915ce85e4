"""The task types that can be fine-tuned, one file each, and the task that the data tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.data.spec import TaskSpec
from hifi.data.splits import check_columns
from hifi.errors import InvalidArgumentError
from hifi.tasks.base import Batch, Encoder, Examples, Sample, Task
from hifi.tasks.inference import infer
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
    declared = task.declaration
    given = {"text": spec.text, "image": () if spec.image is None else (spec.image,)}
    inputs = given.pop(declared.inputs.field)
    if len(inputs) not in declared.input_counts or any(given.values()):
        raise InvalidArgumentError(
            "image" if spec.image else "text",
            value=spec.image or spec.text,
            limit=f"{spec.type} reads {declared.inputs.words}",
        )
    return task.from_data(dataset, inputs=inputs, label=str(spec.label), metric=spec.metric)
