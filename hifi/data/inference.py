"""The task that a data set's profile tells, completed and checked.

Nothing is read here: whatever has a profile can ask, the library, a job and an upload alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hifi.data.spec import TaskSpec
from hifi.data.task_types import TaskType, Use, find_task_type, task_types
from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    InvalidArgumentError,
    MissingColumnError,
    listed,
)

if TYPE_CHECKING:
    from hifi.data.profile import ColumnProfile, DatasetProfile

_LABEL_NAMES = ("label", "labels")
_RENAME = " (a column of this name is the label: rename it where another one is meant)"


def infer_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec:
    """Complete what the user said about the task.

    - The image column is the only one that holds images.
    - The label is the column ``label`` (or ``labels``), else the only one that holds numbers or
      booleans; with images the only other one that can be a class.
    - The text columns are all columns of text but the label, one or two of them, in their order.
    - Images are classified; a label with floating-point numbers means regression, unless all of
      them are whole, which leaves a doubt; integers, booleans and texts are classes.

    Args:
        spec: what is given is taken as it is.
        profile: of the data set.

    Returns:
        A spec with type, label, and text columns or an image column.

    Raises:
        AmbiguousTaskError: the columns leave a doubt; it has the argument that settles it.
        MissingColumnError: a column that was named is not there.
        DataError: the label's column is empty, or holds what is neither class nor number.
        TaskNotSupportedError: no such task type, or one that is not built yet.
        InvalidArgumentError: columns that the task type does not read.
    """
    declared = None if spec.type is None else find_task_type(spec.type)
    _check_columns(spec, profile)
    text, image = spec.text, spec.image
    is_about_images = image is not None or (declared is not None and _reads_images(declared))
    if declared is None and image is None and not text:
        is_about_images = any(map(_is_image, profile.columns))
    if is_about_images:
        image = image or _only(profile, _is_image, "image", excluded=[spec.label])
    label = spec.label or _infer_label(profile, excluded=[*text, image])
    if not text and image is None:
        text = _infer_text(profile, excluded=[label])
    kind = spec.type or _infer_type(profile, label, is_about_images=is_about_images)
    _check_inputs(kind, text=text, image=image)
    return replace(spec, type=kind, text=text, label=label, image=image)


def complete_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec:
    """Complete a task as :func:`infer_task` does, with its metric, and check the rows it reads.

    Args:
        spec: what is given is taken as it is.
        profile: of the data set.

    Raises:
        DataError: rows of the chosen columns that the task cannot use; ``param`` is the argument
            that names the column.
        AmbiguousTaskError, MissingColumnError, TaskNotSupportedError: as in :func:`infer_task`.
        InvalidArgumentError: as there; a metric that the task does not have.
    """
    task = infer_task(spec, profile)
    obstacles = list(_obstacles(task, profile, splits=("train", "validation")))
    # Training reads the classes before it looks at the metric.
    _refuse([each for each in obstacles if (each.use, each.error.split) == ("label", "train")])
    task = _with_metric(task)
    _refuse(obstacles)
    return task


def check_certain_task(profile: DatasetProfile) -> None:
    """Refuse rows at the door where the columns leave no doubt what they are for.

    They leave one where several columns of text stand beside a number that is not called a label:
    another of them may be meant. A job then says what it means, and is refused or not.

    Raises:
        DataError: rows that the task cannot use.
    """
    try:
        task = infer_task(TaskSpec(), profile)
    except DataError:
        return
    if task.label not in _LABEL_NAMES and len(task.text) > 1:
        return
    for each in _obstacles(task, profile, splits=("train", "validation", "test")):
        if each.error.split != "test" or each.error.column != task.label:  # may have no labels
            if each.error.column in _LABEL_NAMES:
                each.error.reason += _RENAME
            raise each.error


def check_unseen_task(spec: TaskSpec) -> TaskSpec:
    """Check what is said of a task on a data set that nobody has looked at yet.

    Returns:
        The spec; with its metric, where the type is known.

    Raises:
        TaskNotSupportedError: no such task type, or one that is not built yet.
        InvalidArgumentError: columns or a metric that the task type does not have.
    """
    if spec.type is None:
        return spec
    _check_inputs(spec.type, text=spec.text, image=spec.image)
    return _with_metric(spec)


def count_labels(task: TaskSpec, profile: DatasetProfile | None) -> int | None:
    """Count the logits of a task's head.

    Args:
        task: as far as it is known.
        profile: of the data set; None where nobody has looked at it yet.

    Returns:
        None where the type is not known, or the classes are not, or too many to be counted.
    """
    if task.type is None:
        return None
    declared = find_task_type(task.type)
    if declared.num_labels is not None:
        return declared.num_labels
    if profile is None or declared.label.use != "label":  # other uses have no classes to count
        return None
    column = profile.column(str(task.label))
    return None if column is None else column.num_classes


def _reads_images(declared: TaskType) -> bool:
    return declared.inputs.use == "image"


def _is_image(column: ColumnProfile) -> bool:
    return column.kind == "image"


def _check_columns(spec: TaskSpec, profile: DatasetProfile) -> None:
    for param, name in _named_columns(spec):
        if profile.column(name) is None:
            raise MissingColumnError(name, there=profile.names, split="train", param=param)


def _named_columns(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """List the columns that a spec names, each with the argument that names it."""
    yield from (("text", name) for name in spec.text)
    yield from (("image", name) for name in (spec.image,) if name is not None)
    yield from (("label", name) for name in (spec.label,) if name is not None)


def _check_inputs(name: str, *, text: tuple[str, ...], image: str | None) -> None:
    """Refuse input columns that the task type does not read, or too many of them."""
    declared = find_task_type(name)
    given = {"text": text, "image": () if image is None else (image,)}
    inputs = given.pop(declared.inputs.field)
    if any(given.values()) or (inputs and len(inputs) not in declared.input_counts):
        raise InvalidArgumentError(
            "text" if text else "image",
            value=text or image,
            limit=f"{name} reads {declared.inputs.words}",
        )


def _infer_label(profile: DatasetProfile, *, excluded: Sequence[str | None]) -> str:
    for name in _LABEL_NAMES:
        if name in profile.names and name not in excluded:
            return name
    beside_images = any(_is_image(each) for each in profile.columns if each.name in excluded)

    def can_be_label(column: ColumnProfile) -> bool:
        if column.kind == "text":
            return beside_images
        return column.kind in ("integer", "boolean", "float", "whole")

    return _only(profile, can_be_label, "label", excluded=excluded)


def _infer_text(profile: DatasetProfile, *, excluded: Sequence[str | None]) -> tuple[str, ...]:
    names = _matching(profile, lambda column: column.kind == "text", excluded=excluded)
    if len(names) in (1, 2):
        return tuple(names)
    raise _doubt(profile, "text", f"{len(names) or 'no'} columns hold texts")


def _infer_type(profile: DatasetProfile, label: str, *, is_about_images: bool) -> str:
    if is_about_images:
        return _type_that_reads("image", "label")
    column = profile.column(label)
    if column is None:
        raise MissingColumnError(label, there=profile.names, split="train", param="label")
    if column.kind == "whole":
        raise _doubt(
            profile,
            "task",
            f"the column {label!r} holds numbers that are whole but not written as integers, so "
            "they may be classes or values to regress on",
        )
    if column.kind == "float":
        return _type_that_reads("text", "target")
    if column.kind in ("text", "integer", "boolean"):
        return _type_that_reads("text", "label")
    reason = f"no label can be read of {column.type}"
    raise DataError(reason, split="train", column=label, param="label")


def _type_that_reads(inputs: Use, label: Use) -> str:
    """Return the first task type that is declared to learn such labels of such inputs."""
    return next(
        each.name for each in task_types() if (each.inputs.use, each.label.use) == (inputs, label)
    )


def _only(
    profile: DatasetProfile,
    is_wanted: Callable[[ColumnProfile], bool],
    param: str,
    *,
    excluded: Sequence[str | None],
) -> str:
    names = _matching(profile, is_wanted, excluded=excluded)
    if len(names) == 1:
        return names[0]
    raise _doubt(profile, param, f"{len(names) or 'none'} of the columns could be the {param}")


def _matching(
    profile: DatasetProfile,
    is_wanted: Callable[[ColumnProfile], bool],
    *,
    excluded: Sequence[str | None],
) -> list[str]:
    return [
        column.name
        for column in profile.columns
        if column.name not in excluded and is_wanted(column)
    ]


def _doubt(profile: DatasetProfile, param: str, reason: str) -> AmbiguousTaskError:
    return AmbiguousTaskError(
        f"{reason}; there are the columns {listed(profile.names)}", param=param
    )


def _with_metric(spec: TaskSpec) -> TaskSpec:
    """Fill in the metric of a task whose type is known, or refuse one of another type."""
    declared = find_task_type(str(spec.type))
    if spec.metric is not None and spec.metric not in declared.metrics:
        limit = f"a {declared.name} task has {', '.join(declared.metrics)}"
        raise InvalidArgumentError("metric", value=spec.metric, limit=limit)
    return replace(spec, metric=spec.metric or declared.metrics[0])


@dataclass(frozen=True, kw_only=True)
class _Obstacle:
    """What stands in the way of one use of a column."""

    use: Use
    error: DataError


def _obstacles(
    task: TaskSpec, profile: DatasetProfile, *, splits: Sequence[str]
) -> Iterator[_Obstacle]:
    """List what stands in a task's way, in the order in which training would find it."""
    declared = find_task_type(str(task.type))
    uses: dict[str, Use] = {"label": declared.label.use}
    named = sorted(_named_columns(task), key=lambda each: each[0] != "label")  # the label first
    for split in splits:
        found = []
        for param, name in named:
            column, use = profile.column(name), uses.get(param, declared.inputs.use)
            if column is None:
                continue
            problem = column.problems.get(use, {}).get(split)
            if split == "train":
                problem = column.misfit(use) or problem
            if problem is not None:
                error = DataError(
                    problem.reason, split=split, row=problem.row, column=name, param=param
                )
                found.append(_Obstacle(use=use, error=error))
        if split != "train":  # a column that is missing is found before any row, the inputs first
            found.sort(
                key=lambda each: (
                    each.error.row is not None,
                    each.error.row is None and each.error.param == "label",
                )
            )
        yield from found


def _refuse(obstacles: Sequence[_Obstacle]) -> None:
    for each in obstacles[:1]:
        raise each.error
