"""What a data set's columns say about the task, where they leave no doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hifi.data.columns import is_float, is_image, is_label, is_text, is_whole, kind_of
from hifi.data.task_types import CLASSIFICATION, IMAGE_CLASSIFICATION, REGRESSION, find_task_type
from hifi.errors import AmbiguousTaskError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hifi.data.spec import TaskSpec

_LABEL_NAMES = ("label", "labels")


def infer(spec: TaskSpec, dataset: Dataset) -> TaskSpec:
    """Complete what the user said about the task.

    - The image column is the only one that holds images.
    - The label is the column ``label`` (or ``labels``), else the only one that holds numbers or
      booleans; with images the only other one that can be a class.
    - The text columns are all columns of text but the label, one or two of them, in their order.
    - Images are classified; a label with floating-point numbers means regression, unless all of
      them are whole, which leaves a doubt; integers, booleans and texts are classes.

    Args:
        spec: what is given is taken as it is.
        dataset: the training split.

    Returns:
        A spec with type, label, and text columns or an image column.

    Raises:
        AmbiguousTaskError: the columns leave a doubt; it has the argument that settles it.
        DataError: the label's column is empty, or holds what is neither class nor number.
        TaskNotSupportedError: no such task type, or one that is not built yet.
    """
    image = spec.image
    is_about_images = image is not None
    if spec.type is not None:
        is_about_images = is_about_images or find_task_type(spec.type).input_kind == "image"
    elif not is_about_images and not spec.text:
        is_about_images = any(is_image(dataset, name) for name in dataset.column_names)
    if is_about_images:
        image = image or _only(dataset, is_image, "image", excluded=[spec.label])
    label = spec.label or _infer_label(dataset, excluded=[*spec.text, image])
    text = spec.text
    if not text and image is None:
        text = _infer_text(dataset, excluded=[label])
    kind = spec.type or _infer_type(dataset, label, is_about_images=is_about_images)
    return replace(spec, type=kind, text=text, label=label, image=image)


def _infer_label(dataset: Dataset, *, excluded: Sequence[str | None]) -> str:
    for name in _LABEL_NAMES:
        if name in dataset.column_names and name not in excluded:
            return name

    def can_be_label(dataset: Dataset, column: str) -> bool:
        if is_text(dataset, column):
            return any(name is not None and is_image(dataset, name) for name in excluded)
        return is_label(dataset, column) or is_float(dataset, column)

    return _only(dataset, can_be_label, "label", excluded=excluded)


def _infer_text(dataset: Dataset, *, excluded: Sequence[str | None]) -> tuple[str, ...]:
    names = _matching(dataset, is_text, excluded=excluded)
    if len(names) in (1, 2):
        return tuple(names)
    raise _doubt(dataset, "text", f"{len(names) or 'no'} columns hold texts")


def _infer_type(dataset: Dataset, label: str, *, is_about_images: bool) -> str:
    if is_about_images:
        return IMAGE_CLASSIFICATION.name
    if is_whole(dataset, label):
        raise _doubt(
            dataset,
            "task",
            f"the column {label!r} holds numbers that are whole but not written as integers, so "
            "they may be classes or values to regress on",
        )
    if is_float(dataset, label):
        return REGRESSION.name
    if is_label(dataset, label):
        return CLASSIFICATION.name
    kind = kind_of(dataset, label)
    raise DataError(f"no label can be read of {kind}", split="train", column=label)


def _only(
    dataset: Dataset,
    is_wanted: Callable[[Dataset, str], bool],
    argument: str,
    *,
    excluded: Sequence[str | None],
) -> str:
    names = _matching(dataset, is_wanted, excluded=excluded)
    if len(names) == 1:
        return names[0]
    count = len(names) or "none"
    raise _doubt(dataset, argument, f"{count} of the columns could be the {argument}")


def _matching(
    dataset: Dataset,
    is_wanted: Callable[[Dataset, str], bool],
    *,
    excluded: Sequence[str | None],
) -> list[str]:
    return [n for n in dataset.column_names if n not in excluded and is_wanted(dataset, n)]


def _doubt(dataset: Dataset, argument: str, reason: str) -> AmbiguousTaskError:
    names = ", ".join(map(repr, dataset.column_names))
    return AmbiguousTaskError(f"{reason}; there are the columns {names}", param=argument)
