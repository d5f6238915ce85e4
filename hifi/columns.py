"""Read what a task needs out of a data set's columns, and refuse rows that it cannot use."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image

from hifi.errors import DataError

Label = str | int
T = TypeVar("T")

_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def is_text(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds texts."""
    kind = dataset.features.arrow_schema.field(column).type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_image(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds images: encoded bytes, or a struct with an entry ``bytes``."""
    if isinstance(dataset.features[column], datasets.Image):
        return True
    kind = dataset.features.arrow_schema.field(column).type
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_float(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds floating-point numbers."""
    return bool(pa.types.is_floating(dataset.features.arrow_schema.field(column).type))


def is_label(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds what can be classes: integers, booleans or texts."""
    kind = dataset.features.arrow_schema.field(column).type
    return is_text(dataset, column) or bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_empty(dataset: Dataset, column: str) -> bool:
    """Say whether a column is empty in every row, so that it has no type."""
    return bool(pa.types.is_null(dataset.features.arrow_schema.field(column).type))


def read_texts(dataset: Dataset, column: str, *, split: str) -> list[str]:
    """Read a column of texts, none of them empty.

    Raises:
        DataError: a text that is missing, empty or blank; a column of another type.
    """
    if not is_text(dataset, column) and not _is_empty(dataset, column):
        kind = _kind(dataset, column)
        raise DataError(
            f"a text column is needed, this one holds {kind}", split=split, column=column
        )

    def check(value: str | None) -> str:
        if value is None:
            raise ValueError("the text is missing")
        if not value.strip():
            raise ValueError("the text is empty")
        return value

    return _read(dataset, column, check, split=split)


def read_labels(dataset: Dataset, column: str, *, split: str) -> list[Label]:
    """Read a column of class labels.

    Returns:
        Integers; or texts, where the column holds texts, booleans (``false`` and ``true``) or
        numbers whose names the data set knows (a ``ClassLabel``).

    Raises:
        DataError: a label that is missing or empty; a column of another type.
    """
    feature = dataset.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    is_usable = is_label(dataset, column)
    kind = _kind(dataset, column)

    def check(value: object) -> Label:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError("the label is missing")
        if not is_usable:
            raise ValueError(
                f"a label must be an integer, a text or a boolean; this column holds {kind}"
            )
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            if names is not None and not 0 <= value < len(names):
                raise ValueError(
                    f"the label {value} has no name; names are for 0..{len(names) - 1}"
                )
            return value if names is None else str(names[value])
        text = str(value)
        if not text.strip():
            raise ValueError("the label is empty")
        return text

    return _read(dataset, column, check, split=split)


def label_order(
    dataset: Dataset, column: str, labels: Sequence[Label], *, split: str
) -> list[Label]:
    """List the classes, in the order of the logits.

    Returns:
        The names of a ``ClassLabel`` in its own order; else what occurs, sorted: numbers by value,
        texts by code point.

    Raises:
        DataError: fewer than two classes occur.
    """
    present = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(present) < 2:
        raise DataError(
            f"every row has the label {present[0]!r}; at least two classes must occur",
            split=split,
            column=column,
        )
    feature = dataset.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else present


def label_indices(
    labels: Sequence[Label], *, known: Sequence[Label], column: str, split: str
) -> list[int]:
    """Give each row's class index.

    Raises:
        DataError: a label that is not known.
    """
    index_of = {label: index for index, label in enumerate(known)}
    for row, label in enumerate(labels, start=1):
        if label not in index_of:
            shown = ", ".join(repr(name) for name in known[:20]) + (", …" * (len(known) > 20))
            raise DataError(
                f"the label {label!r} does not occur in train; known are {shown}",
                split=split,
                row=row,
                column=column,
            )
    return [index_of[label] for label in labels]


def read_targets(dataset: Dataset, column: str, *, split: str) -> list[float]:
    """Read a column of numbers to regress on.

    Raises:
        DataError: a number that is missing, NaN or infinite in float32; a column of another type.
    """
    kind = dataset.features.arrow_schema.field(column).type
    is_usable = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    named = _kind(dataset, column)

    def check(value: object) -> float:
        if value is None:
            raise ValueError("the target is missing")
        if not is_usable or not isinstance(value, int | float):
            raise ValueError(f"a number is needed, here is {value!r} in a column of {named}")
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise ValueError(f"the target {value} is not a finite number")
        return float(value)

    return _read(dataset, column, check, split=split)


def read_images(dataset: Dataset, column: str, *, split: str) -> list[bytes]:
    """Read a column of encoded images; each is opened once to see that it can be.

    Paths in the data are not followed.

    Raises:
        DataError: an image that is missing or broken; a column of another type.
    """
    if not is_image(dataset, column):
        raise DataError(
            f"an image column is needed (a struct of bytes and path), this one holds "
            f"{_kind(dataset, column)}",
            split=split,
            column=column,
        )
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))

    def check(value: bytes | dict[str, bytes | None] | None) -> bytes:
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if encoded is None:
            raise ValueError("the image has no bytes (a path alone is not followed)")
        try:
            decode_image(encoded)
        except _BROKEN_IMAGE as error:
            raise ValueError(f"the image cannot be decoded: {error}") from error
        return encoded

    return _read(dataset, column, check, split=split)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: it is broken or huge.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGB")


def _read(dataset: Dataset, column: str, check: Callable[..., T], *, split: str) -> list[T]:
    """Pass every value through ``check``, whose ValueError becomes a DataError with its row."""
    checked = []
    for row, value in enumerate(dataset.with_format(None)[column][:], start=1):
        try:
            checked.append(check(value))
        except ValueError as error:
            raise DataError(str(error), split=split, row=row, column=column) from error
    return checked


def _kind(dataset: Dataset, column: str) -> str:
    return str(dataset.features.arrow_schema.field(column).type)
