"""The task of a job: what its caller says of it, completed and checked by the data set's profile.

The rules are the library's (``hifi.tasks``), which the gateway does not import; a test holds the
two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from hifi.data.profile import ColumnProfile, DatasetProfile, Problem, Use
from service.datasets.checking.errors import DatasetInvalidError
from service.http.problems import ProblemError, invalid_request
from store.spec import TaskFields

if TYPE_CHECKING:
    from store.spec import Metric, TaskType

Field = Literal["text", "image", "label", "type"]

_CLASS_METRICS: tuple[Metric, ...] = ("accuracy", "f1", "matthews")
METRICS: dict[TaskType, tuple[Metric, ...]] = {  # of every task type that there is; default first
    "classification": _CLASS_METRICS,
    "regression": ("pearson", "spearman"),
    "image-classification": _CLASS_METRICS,
}
_IMAGE_TASK: TaskType = "image-classification"
_LABEL_NAMES = ("label", "labels")
_RENAME = " (a column of this name is the label: rename it where another one is meant)"


def complete_task(fields: TaskFields, profile: DatasetProfile) -> TaskFields:
    """Fill in what the caller left out, and see that the chosen columns' rows can be used.

    The label is the column ``label`` (or ``labels``), else the only one of numbers or booleans;
    texts are all other columns of text, one or two; images are classified, numbers with fractions
    regressed on, all else is classes.

    Args:
        fields: what the caller says; taken as it is.
        profile: of the data set.

    Returns:
        The task with type, label, metric, and text columns or an image column.

    Raises:
        ProblemError: 422 ``task_ambiguous`` (param: the field that settles it),
            ``column_not_found``, ``task_not_supported``, ``invalid_request``.
        DatasetInvalidError: rows of the chosen columns that the task cannot use.
    """
    task = _infer(fields, profile)
    obstacles = list(_obstacles(task, profile, splits=("train", "validation")))
    if task.type != "regression":  # the library reads the classes before it looks at the metric
        _refuse([each for each in obstacles if (each.use, each.split) == ("label", "train")])
    task = _with_metric(task)
    _refuse(obstacles)
    return task


def check_certain_task(profile: DatasetProfile) -> None:
    """Refuse rows at the door where the columns leave no doubt what they are for.

    They leave one where several columns of text stand beside a number that is not called a label:
    another of them may be meant. A job then says what it means, and is refused or not.

    Raises:
        DatasetInvalidError: rows that the task cannot use.
    """
    try:
        task = _infer(TaskFields(), profile)
    except ProblemError:
        return
    if task.label not in _LABEL_NAMES and len(_inputs(task)) > 1:
        return
    for each in _obstacles(task, profile, splits=("train", "validation", "test")):
        if each.split != "test" or each.use in ("text", "image"):  # tests may have no labels
            hint = _RENAME if each.column in _LABEL_NAMES else ""
            raise DatasetInvalidError(
                each.reason + hint, split=each.split, row=each.row, column=each.column
            )


def complete_hub_task(fields: TaskFields) -> TaskFields:
    """Check what is said of a task on a data set that nobody has looked at yet.

    Raises:
        ProblemError: 422 ``task_not_supported`` or ``invalid_request``.
    """
    _check_said(fields)
    if fields.type is None:
        return fields
    image = fields.image is not None
    if image and fields.type != _IMAGE_TASK:
        raise invalid_request(f"{fields.type} reads text columns", param="task.image")
    if fields.text is not None and fields.type == _IMAGE_TASK:
        raise invalid_request(f"{fields.type} reads an image column", param="task.text")
    return _with_metric(fields)


def count_labels(task: TaskFields, profile: DatasetProfile) -> int | None:
    """Count the logits of a task's head; None where the classes are too many to be counted."""
    if task.type == "regression":
        return 1
    column = profile.column(str(task.label))
    return None if column is None else column.num_classes


def _check_said(fields: TaskFields) -> None:
    """Refuse what contradicts itself, whatever the data are."""
    text = _texts(fields)
    if len(set(text)) < len(text):
        raise invalid_request("task.text names a column twice", param="task.text")
    if text and fields.image is not None:
        limit = "a task has text columns or an image column"
        raise invalid_request(f"task.image={fields.image!r}: {limit}", param="task.image")
    if fields.label is not None and fields.label in (*text, fields.image):
        limit = "the label is another column than the inputs"
        raise invalid_request(f"task.label={fields.label!r}: {limit}", param="task.label")
    if fields.type is not None and fields.type not in METRICS:
        raise ProblemError(
            "task_not_supported",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"task type {fields.type!r} is not built yet; there are: {', '.join(METRICS)}",
            param="task.type",
        )


def _infer(fields: TaskFields, profile: DatasetProfile) -> TaskFields:
    """Complete the columns and the type."""
    _check_said(fields)
    _check_columns(fields, profile)
    text, image = _texts(fields), fields.image
    is_about_images = image is not None or fields.type == _IMAGE_TASK
    if fields.type is None and image is None and not text:
        is_about_images = any(map(_is_image, profile.columns))
    if is_about_images:
        image = image or _only(profile, _is_image, "image", excluded=[fields.label])
    label = fields.label or _infer_label(profile, excluded=[*text, image])
    if not text and image is None:
        text = _infer_text(profile, excluded=[label])
    kind = fields.type or _infer_type(profile, label, is_about_images=is_about_images)
    if kind == _IMAGE_TASK and text:
        raise invalid_request(f"{kind} reads an image column", param="task.text")
    if kind != _IMAGE_TASK and image is not None:
        raise invalid_request(f"{kind} reads text columns", param="task.image")
    return fields.model_copy(
        update={"type": kind, "text": text or None, "label": label, "image": image}
    )


def _check_columns(fields: TaskFields, profile: DatasetProfile) -> None:
    said: list[tuple[Field, str | None]] = [
        *(("text", name) for name in _texts(fields)),
        ("image", fields.image),
        ("label", fields.label),
    ]
    for field, name in said:
        if name is not None and profile.column(name) is None:
            raise ProblemError(
                "column_not_found",
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
                detail=f"there is no column {name!r}; there are: {_listed(profile)}",
                param=f"task.{field}",
            )


def _infer_label(profile: DatasetProfile, *, excluded: Sequence[str | None]) -> str:
    for name in _LABEL_NAMES:
        if name in profile.names and name not in excluded:
            return name
    beside_images = any(
        column.kind == "image" for column in profile.columns if column.name in excluded
    )

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


def _infer_type(profile: DatasetProfile, label: str, *, is_about_images: bool) -> TaskType:
    if is_about_images:
        return _IMAGE_TASK
    column = profile.column(label)
    kind = "null" if column is None else column.kind
    if kind == "whole":
        raise _doubt(
            profile,
            "type",
            f"the column {label!r} holds numbers that are whole but not written as integers, so "
            "they may be classes or values to regress on",
        )
    if kind == "float":
        return "regression"
    if kind in ("text", "integer", "boolean"):
        return "classification"
    shown = "null" if column is None else column.type
    raise DatasetInvalidError(
        f"no label can be read of {shown}", split="train", column=label, param="task.label"
    )


def _only(
    profile: DatasetProfile,
    is_wanted: Callable[[ColumnProfile], bool],
    field: Field,
    *,
    excluded: Sequence[str | None],
) -> str:
    names = _matching(profile, is_wanted, excluded=excluded)
    if len(names) == 1:
        return names[0]
    raise _doubt(profile, field, f"{len(names) or 'none'} of the columns could be the {field}")


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


def _is_image(column: ColumnProfile) -> bool:
    return column.kind == "image"


def _doubt(profile: DatasetProfile, field: Field, reason: str) -> ProblemError:
    param = f"task.{field}"
    return ProblemError(
        "task_ambiguous",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail=f"{reason}; there are the columns {_listed(profile)}: say which with {param}",
        param=param,
    )


def _listed(profile: DatasetProfile) -> str:
    names = [repr(name) for name in profile.names[:20]]
    return ", ".join([*names, "…"] if len(profile.names) > len(names) else names)


def _texts(fields: TaskFields) -> tuple[str, ...]:
    if fields.text is None:
        return ()
    return (fields.text,) if isinstance(fields.text, str) else fields.text


def _inputs(task: TaskFields) -> tuple[str, ...]:
    return _texts(task) if task.image is None else (task.image,)


def _with_metric(task: TaskFields) -> TaskFields:
    """Fill in the metric of a task whose type is known, or refuse one of another type."""
    if task.type is None:
        return task
    known = METRICS[task.type]
    if task.metric is not None and task.metric not in known:
        detail = f"metric {task.metric!r} is none of a {task.type} task: it has {', '.join(known)}"
        raise invalid_request(detail, param="task.metric")
    return task.model_copy(update={"metric": task.metric or known[0]})


@dataclass(frozen=True, kw_only=True)
class _Obstacle:
    """What stands in the way of one use of a column."""

    column: str
    use: Use
    split: str
    row: int | None
    reason: str

    @property
    def is_label(self) -> bool:
        return self.use in ("label", "target")

    @property
    def param(self) -> str:
        return "task.label" if self.is_label else f"task.{self.use}"


def _obstacles(
    task: TaskFields, profile: DatasetProfile, *, splits: Sequence[str]
) -> Iterator[_Obstacle]:
    """List what stands in a task's way, in the order in which the library would find it."""
    uses = list(_uses(task, profile))
    for split in splits:
        found = []
        for column, use in uses:
            problem = column.problems.get(use, {}).get(split)
            if split == "train":
                problem = _unfit(column, use) or problem
            if problem is not None:
                found.append(_Obstacle(column=column.name, use=use, split=split, **vars(problem)))
        if split != "train":  # a column that is missing is seen before any row, the inputs first
            found.sort(key=lambda each: (each.row is not None, each.row is None and each.is_label))
        yield from found


def _uses(task: TaskFields, profile: DatasetProfile) -> Iterator[tuple[ColumnProfile, Use]]:
    """Say what each chosen column is used for, the label first."""
    label: Use = "target" if task.type == "regression" else "label"
    chosen: list[tuple[str | None, Use]] = [
        (task.label, label),
        *((name, "text") for name in _texts(task)),
        (task.image, "image"),
    ]
    for name, use in chosen:
        column = None if name is None else profile.column(name)
        if column is not None:
            yield column, use


def _unfit(column: ColumnProfile, use: Use) -> Problem | None:
    """Say why a column's kind rules a use out."""
    if use == "text" and not column.are_cells and column.kind not in ("text", "null"):
        return Problem(row=None, reason=f"a text column is needed, this one holds {column.type}")
    if use == "image" and column.kind != "image":
        needed = "an image column is needed (a struct of bytes and path)"
        return Problem(row=None, reason=f"{needed}, this one holds {column.type}")
    return None


def _refuse(obstacles: Sequence[_Obstacle]) -> None:
    for each in obstacles[:1]:
        raise DatasetInvalidError(
            each.reason, split=each.split, row=each.row, column=each.column, param=each.param
        )
