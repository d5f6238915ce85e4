"""Find the torch part of a task type by its name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hifi.data import task_types as declared

if TYPE_CHECKING:
    from hifi.tasks.base import Task


def task_types() -> tuple[str, ...]:
    """Return the names of the supported task types."""
    return tuple(each.name for each in declared.task_types())


def get_task(name: str) -> type[Task]:
    """Return the class of a task type, by its name in a job spec.

    Raises:
        TaskNotSupportedError: the type is unknown or not supported yet.
    """
    module, _, attribute = declared.find_task_type(name).implementation.partition(":")
    task: type[Task] = getattr(import_module(module), attribute)
    return task
