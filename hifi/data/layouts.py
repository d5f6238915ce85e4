"""Find the columns of tasks that read words, spans, answers and other lists, by name and shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hifi.data.choice_columns import find_choice_task, missing_field
from hifi.data.profile import ColumnProfile, misfit
from hifi.data.task_types import MULTIPLE_CHOICE, Layout, TaskType, task_types

if TYPE_CHECKING:
    from hifi.data.profile import DatasetProfile
    from hifi.data.spec import TaskSpec
    from hifi.data.task_types import Columns

_PLAIN = frozenset({"text", "image", "label"})  # fields whose columns are not told by their shape
_Named = Mapping[str, tuple[str, ...]]


def find_listed_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec | None:
    """Infer a task that reads lists: words and their tags, or a text and its spans.

    If neither type nor such columns are named, words and tags must have usual names; spans are told
    by their shape.

    Args:
        spec: the parts that are set do not change.
        profile: of the data set.

    Returns:
        A spec with type and columns; None if the columns are for none of these tasks.
    """
    is_certain = spec.type is not None or any(field not in _PLAIN for field in spec.named)
    choice_task = find_choice_task(spec, profile)
    if choice_task is not None:
        return choice_task
    for declared, layout in _listed_layouts():
        if spec.type not in (None, declared.name) or not set(spec.named) <= set(layout.fields):
            continue
        columns = _find_columns(layout, spec.named, profile, is_certain=is_certain)
        if columns is not None:
            single: dict[str, Any] = {field: names[0] for field, names in columns.items()}
            return replace(spec, type=declared.name, **single)
    return None


def reads_lists(declared: TaskType) -> bool:
    """Return whether a task type reads words, spans or other lists in all of its layouts."""
    return all(not set(layout.fields) <= _PLAIN for layout in declared.layouts)


def _listed_layouts() -> Iterator[tuple[TaskType, Layout]]:
    for declared in task_types():
        for layout in declared.layouts:
            if not set(layout.fields) <= _PLAIN and declared is not MULTIPLE_CHOICE:
                yield declared, layout


def first_missing(declared: TaskType, spec: TaskSpec, profile: DatasetProfile) -> Columns:
    """Return what a task that reads lists lacks: the first columns that cannot be told.

    Args:
        declared: the task's type.
        spec: names no columns, or some of one of its layouts.
        profile: of the data set.

    Raises:
        DataError: a column has a usual name, but cannot be used.
    """
    layout = declared.layouts_with(spec.named)[0]
    if declared is MULTIPLE_CHOICE:
        field = missing_field(spec, profile)
        columns = next(each for each in (*layout.inputs, layout.label) if each.field == field)
        _refuse_unfit(columns, profile)
        return columns
    taken = {name for names in spec.named.values() for name in names}
    for columns in (*layout.inputs, layout.label):
        if columns.field in spec.named:
            continue
        found = _find(columns, profile, taken, is_certain=True)
        taken |= set(found)
        if not found:
            _refuse_unfit(columns, profile)
            return columns
    return layout.label


def _refuse_unfit(columns: Columns, profile: DatasetProfile) -> None:
    for column in filter(None, map(profile.column, columns.names)):
        problem = column.unfit or misfit(
            columns.use, column.kind, column.type, are_cells=column.are_cells
        )
        if problem is not None:
            raise problem.error(column.name, split="train", param=columns.field)


def _find_columns(
    layout: Layout, named: _Named, profile: DatasetProfile, *, is_certain: bool
) -> _Named | None:
    """Return the columns of each field; None if one of them cannot be told."""
    found: dict[str, tuple[str, ...]] = {}
    for columns in (*layout.inputs, layout.label):
        taken = {name for names in (*named.values(), *found.values()) for name in names}
        names = named.get(columns.field) or _find(columns, profile, taken, is_certain=is_certain)
        if not names:
            return None
        found[columns.field] = names
    return found


def _find(
    columns: Columns, profile: DatasetProfile, taken: set[str], *, is_certain: bool
) -> tuple[str, ...]:
    fitting = [
        column.name
        for column in profile.columns
        if column.name not in taken and column.left_out is None and _fits(column, columns)
    ]
    usual = [name for name in columns.names if name in fitting]
    if usual:
        return (usual[0],)
    is_told_by_shape = columns.use in ("text", "spans", "answers") or is_certain
    return tuple(fitting) if len(fitting) == 1 and is_told_by_shape else ()


def _fits(column: ColumnProfile, columns: Columns) -> bool:
    if misfit(columns.use, column.kind, column.type, are_cells=column.are_cells) is not None:
        return False
    if columns.use != "words":
        return column.kind != "null"
    problem = column.problems.get(columns.use, {}).get("train")
    return problem is None or problem.row is not None  # numbers are no words
