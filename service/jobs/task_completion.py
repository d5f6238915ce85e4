"""Complete a job's task from its data set's profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hifi.data import inference
from hifi.data.spec import TaskSpec
from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    InvalidArgumentError,
    MissingColumnError,
    TaskNotSupportedError,
)
from service.datasets.checking.errors import DatasetInvalidError
from service.http.problems import invalid_request, unprocessable
from store.jobs.spec import TaskFields

if TYPE_CHECKING:
    from hifi.data.profile import DatasetProfile


def complete_task(fields: TaskFields, profile: DatasetProfile) -> TaskFields:
    """Infer the task fields that the caller left out, and check the rows of the chosen columns.

    Returns:
        The task with type, label, metric, and text columns or an image column.

    Raises:
        ProblemError: 422 ``task_ambiguous`` (param: the field to set), ``column_not_found``,
            ``task_not_supported``, ``invalid_request``.
        DatasetInvalidError: the task cannot use a row of the chosen columns.
    """
    with _as_problems():
        task = inference.complete_task(_spec(fields), profile)
    named = {name: None if value == () else value for name, value in vars(task).items()}
    return TaskFields.model_validate(named)


def complete_unseen_task(fields: TaskFields) -> TaskFields:
    """Check the task fields of a job on a data set of the hub, whose profile is unknown.

    Raises:
        ProblemError: 422 ``task_not_supported`` or ``invalid_request``.
    """
    with _as_problems():
        task = inference.check_unseen_task(_spec(fields))
    return fields.model_copy(update={"metric": task.metric})


def count_labels(task: TaskFields, profile: DatasetProfile | None) -> int | None:
    """Count the logits of a task's head, as :func:`hifi.data.inference.count_labels` does."""
    return inference.count_labels(_spec(task), profile)


def class_labels(task: TaskFields, profile: DatasetProfile) -> Sequence[str | int] | None:
    """Find a task's classes, as :func:`hifi.data.inference.class_labels` does."""
    return inference.class_labels(_spec(task), profile)


def _spec(fields: TaskFields) -> TaskSpec:
    return TaskSpec(**dict(fields))


@contextmanager
def _as_problems() -> Iterator[None]:
    """Convert the errors of inference to problems that name a field of the job spec."""
    try:
        yield
    except AmbiguousTaskError as error:
        param = "task.type" if error.param == "task" else f"task.{error.param}"
        detail = f"{error.doubt}: set {param}"
        raise unprocessable("task_ambiguous", detail, param=param) from error
    except MissingColumnError as error:
        param = f"task.{error.param}"
        raise unprocessable("column_not_found", str(error), param=param) from error
    except DataError as error:
        raise DatasetInvalidError(error, param=f"task.{error.param}") from error
    except TaskNotSupportedError as error:
        raise unprocessable("task_not_supported", str(error), param="task.type") from error
    except InvalidArgumentError as error:
        raise invalid_request(f"task.{error}", param=f"task.{error.param}") from error
