"""Infer the task from a data set's profile, complete it and check it.

This needs only a profile, no data, so the library, jobs and uploads share it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hifi.data.choice_columns import label_problem
from hifi.data.layouts import find_listed_task, first_missing, reads_lists
from hifi.data.profile import describe_left_out, first_problem, misfit
from hifi.data.run_warnings import are_many_classes
from hifi.data.spec import INPUT_FIELDS, LABEL_FIELDS, OPTIONS, SPLITS, TaskSpec
from hifi.data.task_types import Layout, TaskType, Use, find_task_type, task_types
from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    InvalidArgumentError,
    MissingColumnError,
    listed,
)

if TYPE_CHECKING:
    from hifi.data.profile import ColumnProfile, DatasetProfile, Kind, Problem

_LABEL_NAMES = ("label", "labels")
_LABEL_KINDS: tuple[Kind, ...] = ("integer", "boolean", "float", "whole")
_FEWEST_FLAGS = 3  # two columns of 0 and 1 may be a label and a property of the text
_RENAME = " (a column of this name is taken as the label; rename it if it is not one)"


def infer_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec:
    """Infer the parts of a task that the user did not set.

    - A table's index is no column unless the user names it.
    - Lists of words with their tags, under usual names, and texts with lists of labelled spans mean
      token-classification.
    - Choices in a column of lists or in a column each, under usual names, with a label that numbers
      them, mean multiple-choice.
    - The image column is the only one that holds images.
    - The label is the column ``label`` (or ``labels``), else the only one that holds numbers or
      booleans, or without any the only one of lists; with images the only other one that can be a
      class. A column with another text in every row is none. Three or more columns of 0 and 1, and
      no other candidates, are labels of which a row can have several; if the type is set, two of
      them are enough.
    - The text columns are all columns of text except the label, one or two, in their order.
    - Images are classified. A label of floating-point numbers means regression, unless all of them
      are whole, which is ambiguous. Integers, booleans and texts are classes. Lists, and several
      columns, are labels of which a row can have several.

    Args:
        spec: the parts that are set do not change.
        profile: of the data set.

    Returns:
        A spec with type, label, and text columns or an image column.

    Raises:
        AmbiguousTaskError: the columns fit more than one task; ``param`` decides between them.
        MissingColumnError: a named column does not exist.
        DataError: the label's column is empty, or holds neither classes nor numbers; or no task
            can use one of the columns.
        TaskNotSupportedError: the task type is unknown or not supported yet.
        InvalidArgumentError: the task type does not read these columns, or has no such option.
    """
    task = _choose_task(spec, profile)
    _refuse_unfit(task, profile)
    return task


def _choose_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec:
    """Infer a task; it may read columns with rows that do not fit the rows above."""
    declared = None if spec.type is None else find_task_type(spec.type)
    _refuse_unfit(spec, profile)
    for param, name in _named_columns(spec):
        if profile.column(name) is None:
            raise MissingColumnError(name, there=profile.names, split="train", param=param)
    if spec.type is not None:
        find_layout(spec)
    listed_task = find_listed_task(spec, profile)
    if listed_task is not None:
        _refuse_second_label(spec, listed_task, profile)
        find_layout(listed_task)
        return listed_task
    if declared is not None and reads_lists(declared):
        words = " or ".join(f"{each.words} and {each.label.words}" for each in declared.layouts)
        field = first_missing(declared, spec, profile).field
        raise _doubt(profile, field, f"{declared.name} reads {words}")
    text, image = spec.text, spec.image
    if image is not None:
        is_about_images = True
    elif declared is not None:
        is_about_images = declared.input_kind == "image"
    else:
        is_about_images = not text and bool(_of_kinds(profile, ["image"], excluded=[]))
    if is_about_images:
        image = image or _only(profile, ["image"], "image", excluded=spec.label_columns)
    label = spec.label_columns or _infer_labels(profile, declared, excluded=[*text, image])
    if not text and image is None:
        text = _infer_text(profile, excluded=label)
    kind = spec.type or _infer_type(profile, label, is_about_images=is_about_images)
    task = replace(spec, type=kind, text=text, label=label, image=image)
    find_layout(task)
    return task


def _refuse_second_label(spec: TaskSpec, found: TaskSpec, profile: DatasetProfile) -> None:
    """Raise if nothing but shapes decides, and a column is named as the label of another task."""
    if spec.type is not None or spec.named:
        return
    for name in _LABEL_NAMES:
        if profile.column(name) is not None and name not in found.columns:
            reason = f"the columns fit {found.type} as well as a task whose label is {name!r}"
            raise _doubt(profile, "task", reason)


def find_layout(task: TaskSpec) -> Layout:
    """Return the layout of a task's type that has the fields of its columns.

    Args:
        task: its type is known, its columns perhaps not all.

    Raises:
        InvalidArgumentError: the task type does not read these columns, so many of them, or has no
            such option.
    """
    declared, named = find_task_type(str(task.type)), task.named
    inputs = [field for field in named if field in INPUT_FIELDS]
    if not declared.layouts_with(inputs):
        field = next((field for field in inputs if not declared.layouts_with([field])), inputs[-1])
        raise _unread(declared, field, named[field])
    layouts = declared.layouts_with(named)
    if not layouts:
        labels = " or ".join(each.label.words for each in declared.layouts)
        field = next(field for field in named if field in LABEL_FIELDS)
        raise InvalidArgumentError(
            field, value=getattr(task, field), limit=f"{declared.name} learns {labels}"
        )
    layout = layouts[0]
    for columns in layout.inputs:
        given = named.get(columns.field, ())
        if len(given) > columns.most:
            raise _unread(declared, columns.field, given)
    if len(task.label_columns) > layout.label.most:
        limit = f"{declared.name} learns {layout.label.words}"
        raise InvalidArgumentError("label", value=task.label, limit=limit)
    for option in OPTIONS:
        value = getattr(task, option)
        if value is not None and option not in declared.options:
            limit = f"a {declared.name} task has none"
            raise InvalidArgumentError(option, value=value, limit=limit)
    return layout


def _unread(declared: TaskType, field: str, names: tuple[str, ...]) -> InvalidArgumentError:
    """Return the error of input columns that a task type does not read, or of too many."""
    limit = f"{declared.name} reads {' or '.join(layout.words for layout in declared.layouts)}"
    return InvalidArgumentError(field, value=names, limit=limit)


def infer_label(profile: DatasetProfile) -> str | None:
    """Return the label that :func:`infer_task` infers, even if the rest of the task is uncertain.

    Args:
        profile: of the data set.

    Returns:
        The column's name; None if several columns could be the label, or none.
    """
    images = _of_kinds(profile, ["image"], excluded=[])
    try:
        return _infer_label(profile, excluded=images)
    except AmbiguousTaskError:
        return None


def _refuse_unfit(spec: TaskSpec, profile: DatasetProfile) -> None:
    """Raise if no task can use one of the task's columns."""
    params = {name: param for param, name in _named_columns(spec)}
    for column in profile.columns:
        if column.name in params and column.unfit is not None:
            raise column.unfit.error(column.name, split="train", param=params[column.name])


def complete_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec:
    """Complete a task as :func:`infer_task` does, add its metric, and check the rows it reads.

    The test split is only checked if it is known to have labels; training decides otherwise.

    Args:
        spec: the parts that are set do not change.
        profile: of the data set.

    Raises:
        DataError: the task cannot use rows of the chosen columns; ``param`` is the argument that
            names the column.
        AmbiguousTaskError, MissingColumnError, TaskNotSupportedError: as in :func:`infer_task`.
        InvalidArgumentError: as in :func:`infer_task`, or the task does not have the metric.
    """
    task = infer_task(spec, profile)
    declared = find_task_type(str(task.type))
    labels = [profile.column(name) for name in task.label_columns]
    is_scored = all(label is None or label.test_unlabelled is False for label in labels)
    splits = SPLITS if is_scored else SPLITS[:-1]
    errors = list(_obstacles(task, profile, splits=splits))
    for error in errors:  # training reads the classes before it checks the metric
        is_of_labels = error.param in LABEL_FIELDS and error.split == "train"
        if declared.has_classes and is_of_labels:
            raise error
    task = replace(task, metric=declared.choose_metric(task.metric))
    if errors:
        raise errors[0]
    return task


def check_certain_task(profile: DatasetProfile) -> None:
    """Refuse unusable rows of an upload if the columns fit only one task.

    The task is uncertain if there are several columns of text and the label is a number that is not
    named as a label: another column may be the label. It is too if no task can use one of several
    columns of text; and whole numbers that are no classes, in a column that is not named as a
    label, may be the targets of a regression. Columns beside words and tags, or beside a text and
    its spans, may be what another task reads; no other task reads answers. The job then decides.

    Raises:
        DataError: the task cannot use some rows.
    """
    try:
        task = _choose_task(TaskSpec(), profile)
    except DataError:
        return
    if reads_lists(find_task_type(str(task.type))) and not task.answers:
        others = [each for each in profile.columns if each.name not in task.columns]
        if any(_may_be_label(each, profile) for each in others):
            return
    unfit = {column.name for column in profile.columns if column.unfit is not None}
    is_named = set(task.label_columns).issubset(_LABEL_NAMES)
    if len(task.text) > 1 and (not is_named or unfit.intersection(task.text)):
        return
    for error in _obstacles(task, profile, splits=SPLITS):
        if error.param == "label" and not is_named and _may_be_targets(profile, error.column):
            continue
        if error.column in _LABEL_NAMES:
            error.reason += _RENAME
        raise error


def _may_be_label(column: ColumnProfile, profile: DatasetProfile) -> bool:
    """Return whether a column may be what another task learns: neither an id nor a constant."""
    if column.left_out is not None or column.name.startswith("_"):  # a tool's own
        return False
    if column.kind == "float":
        return True
    count = column.num_classes
    return count is not None and 1 < count < profile.rows["train"]


def _may_be_targets(profile: DatasetProfile, name: str | None) -> bool:
    """Return whether a column of whole numbers has a target of a regression in each row."""
    column = None if name is None else profile.column(name)
    return column is not None and column.kind == "integer" and not column.problems.get("target")


def check_unseen_task(spec: TaskSpec) -> TaskSpec:
    """Check a task on a data set without a profile.

    Returns:
        The spec, with its metric if the type is known.

    Raises:
        TaskNotSupportedError: the task type is unknown or not supported yet.
        InvalidArgumentError: the task type does not have these columns or this metric.
    """
    if spec.type is None:
        return spec
    find_layout(spec)
    return replace(spec, metric=find_task_type(spec.type).choose_metric(spec.metric))


def count_labels(task: TaskSpec, profile: DatasetProfile | None) -> int | None:
    """Return the number of logits of a task's head.

    Args:
        task: may be incomplete.
        profile: of the data set; None if it was not profiled yet.

    Returns:
        None if the type or the classes are not known, or there are too many classes to count.
    """
    if task.type is None:
        return None
    declared = find_task_type(task.type)
    if declared.num_labels is not None:
        return declared.num_labels
    if declared.has_tags:
        column = _tags_column(task, profile)
        return None if column is None else column.num_tags
    if len(task.label_columns) > 1:
        return len(task.label_columns)
    column = None if profile is None else find_class_column(task, profile)
    return None if column is None else column.num_classes


def find_class_column(task: TaskSpec, profile: DatasetProfile) -> ColumnProfile | None:
    """Return the single column of a task's classes; None if there is none, or it is not known."""
    if task.type is None or not find_task_type(task.type).has_classes:
        return None
    return profile.column(task.label) if isinstance(task.label, str) else None


def class_labels(task: TaskSpec, profile: DatasetProfile) -> Sequence[str | int] | None:
    """Return a task's classes; None if its type has none, or the profile does not keep them."""
    if len(task.label_columns) > 1:
        return task.label_columns
    if task.type is not None and find_task_type(task.type).has_tags:
        column = _tags_column(task, profile)
        return None if column is None else column.tags
    column = find_class_column(task, profile)
    return None if column is None else column.labels


def _tags_column(task: TaskSpec, profile: DatasetProfile | None) -> ColumnProfile | None:
    if profile is None or not task.label_columns:
        return None
    return profile.column(task.label_columns[0])


def _named_columns(spec: TaskSpec) -> list[tuple[str, str]]:
    """Return the columns that a spec names, each after the argument that names it."""
    return [(param, name) for param, names in spec.named.items() for name in names]


def _infer_labels(
    profile: DatasetProfile, declared: TaskType | None, *, excluded: Sequence[str | None]
) -> tuple[str, ...]:
    """Infer the label column, or several columns of 0 and 1."""
    flags = _find_flags(profile, declared, excluded=excluded)
    return flags or (_infer_label(profile, excluded=excluded),)


def _find_flags(
    profile: DatasetProfile, declared: TaskType | None, *, excluded: Sequence[str | None]
) -> tuple[str, ...]:
    """Return the columns of 0 and 1 if the label must be these; else nothing."""
    if declared is not None and declared.layouts[0].label.use_of_many != "flag":
        return ()
    candidates = _of_kinds(profile, _LABEL_KINDS, excluded=excluded)
    if len(candidates) < (_FEWEST_FLAGS if declared is None else 2):
        return ()
    columns = [column for column in profile.columns if column.name in candidates]
    are_flags = all(_is_flag(column) for column in columns)
    is_named = any(name in _LABEL_NAMES for name in candidates)
    return tuple(candidates) if are_flags and not is_named else ()


def _is_flag(column: ColumnProfile) -> bool:
    is_excluded = misfit("flag", column.kind, column.type, are_cells=column.are_cells)
    return is_excluded is None and "train" not in column.problems.get("flag", {})


def _infer_label(profile: DatasetProfile, *, excluded: Sequence[str | None]) -> str:
    unique = [column.name for column in profile.columns if _holds_unique_texts(column, profile)]
    for name in _LABEL_NAMES:
        column = profile.column(name)
        if column is None or name in excluded:
            continue
        if column.left_out == "index":  # another column would be taken silently
            raise _doubt(profile, "label", f"the column {name!r} is the table's index")
        if name in unique:
            raise _doubt(profile, "label", f"every row has another text in {name!r}")
        return name
    beside_images = any(
        column.kind == "image" and column.name in excluded for column in profile.columns
    )
    kinds: tuple[Kind, ...] = (*_LABEL_KINDS, "text") if beside_images else _LABEL_KINDS
    if not _of_kinds(profile, kinds, excluded=[*excluded, *unique]):
        kinds = ("list",)
    return _only(profile, kinds, "label", excluded=[*excluded, *unique])


def _holds_unique_texts(column: ColumnProfile, profile: DatasetProfile) -> bool:
    """Return whether a column is a text or an id of each row, rather than a class."""
    rows = profile.rows["train"]
    is_unique = column.kind == "text" and column.num_classes == rows
    return is_unique and are_many_classes(rows, rows=rows)


def _infer_text(profile: DatasetProfile, *, excluded: Sequence[str | None]) -> tuple[str, ...]:
    names = _of_kinds(profile, ["text"], excluded=excluded)
    if len(names) in (1, 2):
        return tuple(names)
    raise _doubt(profile, "text", f"{len(names) or 'no'} columns hold texts")


def _infer_type(profile: DatasetProfile, labels: tuple[str, ...], *, is_about_images: bool) -> str:
    if is_about_images:
        return _type_that_reads("image", "label")
    if len(labels) > 1:
        return next(name for name, layout in _layouts() if layout.label.use_of_many is not None)
    (label,) = labels
    column = next(column for column in profile.columns if column.name == label)
    if column.kind == "list":
        return _type_that_reads("text", "labels")
    if column.kind == "whole":
        raise _doubt(
            profile,
            "task",
            f"the column {label!r} holds numbers that are whole but not written as integers, so "
            "they may be classes or regression targets",
        )
    if column.kind == "float":
        return _type_that_reads("text", "target")
    if column.kind in ("text", "integer", "boolean"):
        return _type_that_reads("text", "label")
    reason = f"a column of {column.type} cannot be the label"
    raise DataError(reason, split="train", column=label, param="label")


def _type_that_reads(inputs: Use, label: Use) -> str:
    """Return the first task type with this use of its inputs and of its label."""
    return next(
        name
        for name, layout in _layouts()
        if ([each.use for each in layout.inputs], layout.label.use) == ([inputs], label)
    )


def _layouts() -> Iterator[tuple[str, Layout]]:
    """Yield the layouts of all task types, each after the type's name."""
    return ((each.name, layout) for each in task_types() for layout in each.layouts)


def _only(
    profile: DatasetProfile,
    kinds: Collection[Kind],
    param: str,
    *,
    excluded: Sequence[str | None],
) -> str:
    names = _of_kinds(profile, kinds, excluded=excluded)
    if len(names) == 1:
        return names[0]
    raise _doubt(profile, param, f"{len(names) or 'none'} of the columns could be the {param}")


def _of_kinds(
    profile: DatasetProfile, kinds: Collection[Kind], *, excluded: Sequence[str | None]
) -> list[str]:
    return [
        column.name
        for column in profile.columns
        if column.kind in kinds and column.name not in excluded and column.left_out != "index"
    ]


def _doubt(profile: DatasetProfile, param: str, reason: str) -> AmbiguousTaskError:
    columns = f"the columns are {listed(profile.names)}{describe_left_out(profile.notes)}"
    return AmbiguousTaskError(f"{reason}; {columns}", param=param)


def _problem(
    column: ColumnProfile, use: Use, *, split: str, beside: Sequence[str]
) -> Problem | None:
    """Return the first row of a split that a use of a column refuses, or why its kind does.

    Args:
        column: of the split.
        use: of the column.
        split: its name.
        beside: the columns whose rows it must fit.
    """
    if split == "train":
        excluded = misfit(use, column.kind, column.type, are_cells=column.are_cells)
        if excluded is not None:
            return excluded
    found = [column.problems.get(use, {}).get(split)]
    found += [column.beside.get(name, {}).get(split) for name in beside]
    problems = [problem for problem in found if problem is not None]
    if split == "train":  # whose tags are read before they are compared with words
        return next(iter(problems), None)
    return first_problem(problems)


def _obstacles(
    task: TaskSpec, profile: DatasetProfile, *, splits: Sequence[str]
) -> Iterator[DataError]:
    """Yield the errors that prevent a task, in the order in which training would raise them.

    That a test split has no labels is none: it is not scored then.
    """
    layout = find_layout(task)
    uses = {columns.field: columns for columns in (*layout.inputs, layout.label)}
    label_first = sorted(_named_columns(task), key=lambda each: each[0] in INPUT_FIELDS)
    for split in splits:
        found = []
        for param, name in label_first:
            column = profile.column(name)
            if column is None:
                continue
            if param in LABEL_FIELDS and split == "test" and column.test_unlabelled:
                continue
            use = uses[param].use_of(len(task.named[param]))
            beside = task.named.get(uses[param].beside or "", ())
            problem = _problem(column, use, split=split, beside=beside)
            if problem is None and use == "choice":
                problem = label_problem(task, profile, split=split)
            if problem is not None:
                found.append(problem.error(name, split=split, param=param))
        if split != "train":  # missing columns come before rows, and of them the inputs first
            found.sort(
                key=lambda error: (
                    error.row is not None,
                    error.row is None and error.param in LABEL_FIELDS,
                )
            )
        yield from found
