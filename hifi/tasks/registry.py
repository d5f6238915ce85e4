"""The torch parts of the task types, found by the name in a job spec."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hifi.data import task_types as declared

if TYPE_CHECKING:
    from hifi.tasks.base import Task


def task_types() -> tuple[str, ...]:
    """Name the task types that are built."""
    return tuple(each.name for each in declared.task_types())


def get_task(name: str) -> type[Task]:
    """Find a task type by its name in a job spec.

    Raises:
        TaskNotSupportedError: no such type, or one that is not built yet.
    """
    module, _, attribute = declared.find_task_type(name).implementation.partition(":")
    task: type[Task] = getattr(import_module(module), attribute)
    return task
