"""Warn of a job before a worker runs it, from the data set's profile and the backbone's row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hifi.data.classes.stored_head import StoredHead, fit_labels
from hifi.data.run_warnings import (
    RunWarning,
    refuse_to_keep,
    warn_of_classes,
    warn_of_labels_by_number,
    warn_of_replaced_head,
    warn_of_unlabelled_test,
)
from hifi.data.task_types import find_task_type
from service.jobs.task_completion import class_labels
from store.jobs.spec import job_warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hifi.data.profile import DatasetProfile
    from hifi.data.settings import HeadStart
    from store.jobs.spec import TaskFields
    from store.tables import Backbone


def find_warnings(
    task: TaskFields, *, profile: DatasetProfile, backbone: Backbone | None, head_start: HeadStart
) -> list[dict[str, Any]]:
    """Return the warnings that are certain without the data; the worker stores all.

    Args:
        task: completed.
        profile: of its data set; that of an earlier version knows no labels.
        backbone: None if no worker has described it.
        head_start: where the task head starts.

    Raises:
        InvalidArgumentError: it keeps the backbone's task head, which does not fit the labels.
    """
    found = _find(task, profile=profile, backbone=backbone, head_start=head_start)
    return [job_warning(each) for each in found]


def _find(
    task: TaskFields, *, profile: DatasetProfile, backbone: Backbone | None, head_start: HeadStart
) -> Iterator[RunWarning]:
    columns = [profile.column(name) for name in task.label_columns]
    column = columns[0] if len(columns) == 1 else None
    declared = find_task_type(str(task.type))
    if declared.has_classes and not declared.has_tags and column is not None:
        yield from warn_of_classes(column, rows=profile.rows["train"])
    unlabelled = [each.name for each in columns if each is not None and each.test_unlabelled]
    if unlabelled:
        yield warn_of_unlabelled_test(unlabelled[0])
    stored = {} if backbone is None else backbone.task_heads.get(declared.name, {}).get("stored")
    if backbone is None or not stored or head_start not in ("auto", "keep"):
        return
    names = stored["names"]
    head = StoredHead(
        num_labels=stored["num_labels"],
        names=None if names is None else tuple(names),
        problem_type=stored.get("problem_type"),  # missing in rows of earlier versions
    )
    classes = class_labels(task, profile)
    if declared.has_classes and classes is None:
        return  # too many to be kept in the profile
    num_labels = declared.num_labels or len(classes or ())
    has_named_integers = column is not None and column.has_named_integers
    fit = fit_labels(
        head, classes=classes, num_labels=num_labels, problem_type=declared.problem_type
    )
    if fit is None and head_start == "keep":
        raise refuse_to_keep(
            backbone.id, head=head, classes=classes, has_named_integers=has_named_integers
        )
    if fit is None:
        yield warn_of_replaced_head(
            backbone.id, head=head, classes=classes, has_named_integers=has_named_integers
        )
    if fit is not None and fit.names is not None:
        yield warn_of_labels_by_number(backbone.id, names=fit.names)
