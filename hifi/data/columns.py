"""Read what a task needs out of a data set's columns, and refuse rows that it cannot use.

Columns from a CSV file hold *cells*: texts of which the file does not say what they are. A mark on
the column says what all of them look like, which is what a task is inferred from. What they are is
said by their use: texts are the cells as they are, targets any notation of a number; classes are
integers or booleans where no two spellings could become one class, else texts (``1.0`` is the class
1, where the user says that it is a class), and a validation split is read by the classes of the
training split and not by its own looks.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image, UnidentifiedImageError

from hifi.errors import DataError

Label = str | int
T = TypeVar("T")

# Of what Pillow reads: no format that starts other programs (EPS) or is decoded on opening (ICO).
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# The mark is a datasets.Value's `id`, which is free for use and survives selecting and shuffling.
_CELLS = {
    f"hifi.cells:{kind}": kind
    for kind in (pa.null(), pa.int64(), pa.bool_(), pa.float64(), pa.string())
}
_PADDING = " \t"  # what may stand around a number
# A cell without a number in a column of numbers, as pandas and pyarrow have it.
_MISSING = (
    *("", "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
_WHOLE = r"[+-]?[0-9]+"
_INTEGER = r"0|-?[1-9][0-9]{0,17}"  # the one notation of a number, of those that fit an int64
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
_BOOLEANS = (r"true|false", r"True|False", r"TRUE|FALSE")


def cells_feature(cells: pa.ChunkedArray) -> datasets.Value:
    """Describe a column of cells: texts, with a mark of what all of them look like.

    Args:
        cells: a column of a CSV file, of Arrow type ``string``.
    """
    return datasets.Value("string", id=f"hifi.cells:{_looks(cells)}")


def _looks(cells: pa.ChunkedArray) -> pa.DataType:
    """Give the type that all cells could have; of notations that integers cannot keep, texts."""
    words = pc.ascii_trim(cells, _PADDING)
    words = words.filter(pc.invert(pc.is_in(words, value_set=pa.array(_MISSING))))

    def are(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(words, f"^(?:{pattern})$")).as_py())

    if len(words) == 0:
        return pa.null()
    if are(_WHOLE):  # 007 and 7 must not become one class
        return pa.int64() if are(_INTEGER) else pa.string()
    if are(_NUMBER):
        return pa.float64()
    return pa.bool_() if any(are(spelling) for spelling in _BOOLEANS) else pa.string()


def _are_cells(dataset: Dataset, column: str) -> bool:
    feature = dataset.features[column]
    return (
        isinstance(feature, datasets.Value) and feature.dtype == "string" and feature.id in _CELLS
    )


def _type(dataset: Dataset, column: str) -> pa.DataType:
    """Give a column's type; of cells the one that all of them look like."""
    if _are_cells(dataset, column):
        return _CELLS[dataset.features[column].id]
    return dataset.features.arrow_schema.field(column).type


def kind_of(dataset: Dataset, column: str) -> str:
    """Name what a column holds, for messages."""
    return str(_type(dataset, column))


def is_text(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds texts."""
    kind = _type(dataset, column)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_image(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds images: encoded bytes, or a struct with an entry ``bytes``."""
    if isinstance(dataset.features[column], datasets.Image):
        return True
    kind = _type(dataset, column)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_float(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds floating-point numbers."""
    return bool(pa.types.is_floating(_type(dataset, column)))


def is_whole(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds floating-point numbers, and all of them are whole.

    These are numbers, or classes that went through a program that knows no integers with gaps.
    """
    if not is_float(dataset, column):
        return False
    values = dataset.with_format(None)[column][:]
    numbers = [_number(value) if isinstance(value, str) else value for value in values]
    return all(
        number is None or math.isnan(float(number)) or float(number).is_integer()
        for number in numbers
    )


def is_label(dataset: Dataset, column: str) -> bool:
    """Say whether a column holds what can be classes: integers, booleans or texts."""
    kind = _type(dataset, column)
    return is_text(dataset, column) or bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_empty(dataset: Dataset, column: str) -> bool:
    """Say whether a column is empty in every row, so that it has no type."""
    return bool(pa.types.is_null(_type(dataset, column)))


def read_texts(dataset: Dataset, column: str, *, split: str) -> list[str]:
    """Read a column of texts, none of them empty.

    Raises:
        DataError: a text that is missing, empty or blank; a column of another type.
    """
    is_usable = is_text(dataset, column) or _are_cells(dataset, column)
    if not is_usable and not _is_empty(dataset, column):
        kind = kind_of(dataset, column)
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


def read_labels(
    dataset: Dataset, column: str, *, split: str, known: Sequence[Label] = ()
) -> list[Label]:
    """Read a column of class labels.

    Args:
        dataset: holds the column.
        column: its name.
        split: for messages.
        known: the classes, where the training split has told them: what cells are read by.

    Returns:
        Integers; or texts, where the column holds texts, booleans (``false`` and ``true``) or
        numbers whose names the data set knows (a ``ClassLabel``). Whole floating-point
        numbers are integers.

    Raises:
        DataError: a label that is missing or empty; a column of another type.
    """
    feature = dataset.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    read_cell = _cell_reader(dataset, column, known=known)
    are_whole = is_whole(dataset, column)
    is_usable = is_label(dataset, column) or are_whole or bool(known and read_cell)
    kind = kind_of(dataset, column)

    def check(value: object) -> Label:
        if read_cell is not None and isinstance(value, str):
            value = read_cell(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError("the label is missing")
        if not is_usable:
            raise ValueError(
                f"a label must be a whole number, a text or a boolean; this column holds {kind}, "
                f"here {value}"
            )
        if isinstance(value, bool):
            return str(value).lower()
        if are_whole and isinstance(value, float):
            return int(value)
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


def _cell_reader(
    dataset: Dataset, column: str, *, known: Sequence[Label]
) -> Callable[[str], object] | None:
    """Give what reads a label out of a cell; None for a column that holds no cells."""
    if not _are_cells(dataset, column):
        return None
    looks = _type(dataset, column)
    if not known:
        return partial(_read_by_looks, looks=looks)
    class_of = {str(label): label for label in known}
    return partial(_read_by_classes, class_of=class_of, are_floats=pa.types.is_floating(looks))


def _read_by_looks(cell: str, *, looks: pa.DataType) -> object:
    """Read a label of the training split as what all cells of its column look like."""
    word = cell.strip(_PADDING)
    if pa.types.is_string(looks):
        return cell
    if word in _MISSING:
        return None
    if pa.types.is_floating(looks):
        return _number(word)
    return int(word) if pa.types.is_integer(looks) else word.lower()


def _read_by_classes(cell: str, *, class_of: Mapping[str, Label], are_floats: bool) -> Label | None:
    """Read a label as one of the known classes, where it can be one."""
    word = cell.strip(_PADDING)
    if cell in class_of:
        return class_of[cell]
    number = _number(word) if are_floats else None
    if isinstance(number, float) and number.is_integer():
        word = str(int(number))
    if isinstance(class_of.get(word), int):
        return class_of[word]
    if word.lower() in class_of and any(re.fullmatch(words, word) for words in _BOOLEANS):
        return word.lower()
    return None if word in _MISSING else cell


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
    kind = _type(dataset, column)
    are_cells = _are_cells(dataset, column)
    is_usable = are_cells or pa.types.is_floating(kind) or pa.types.is_integer(kind)

    def check(value: object) -> float:
        if are_cells and isinstance(value, str):
            value = _number(value)
        if value is None:
            raise ValueError("the target is missing")
        if not is_usable or not isinstance(value, int | float):
            raise ValueError(f"a number is needed, here is {value!r} in a column of {kind}")
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise ValueError(f"the target {value} is not a finite number")
        return float(value)

    return _read(dataset, column, check, split=split)


def _number(cell: str) -> float | str | None:
    """Read a cell in any notation of a number; one that holds none stays as it is."""
    word = cell.strip(_PADDING)
    if word in _MISSING:
        return None
    return float(word) if re.fullmatch(_NUMBER, word) else cell


def read_images(dataset: Dataset, column: str, *, split: str) -> list[bytes]:
    """Read a column of encoded images; each is opened once to see that it can be.

    Paths in the data are not followed.

    Raises:
        DataError: an image that is missing or broken; a column of another type.
    """
    if not is_image(dataset, column):
        raise DataError(
            f"an image column is needed (a struct of bytes and path), this one holds "
            f"{kind_of(dataset, column)}",
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
        except UnidentifiedImageError as error:
            raise ValueError("these bytes are no image of a known format") from error
        except _BROKEN_IMAGE as error:
            raise ValueError(f"the image cannot be decoded: {error}") from error
        return encoded

    return _read(dataset, column, check, split=split)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: it is broken or huge.
    """
    with Image.open(io.BytesIO(encoded), formats=_IMAGE_FORMATS) as image:
        return image.convert("RGB")


def image_size(encoded: bytes) -> tuple[int, int]:
    """Read width and height of an image, in pixels, without decoding it.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: as for
            :func:`decode_image`.
    """
    with Image.open(io.BytesIO(encoded), formats=_IMAGE_FORMATS) as image:
        return image.size


def _read(dataset: Dataset, column: str, check: Callable[..., T], *, split: str) -> list[T]:
    """Pass every value through ``check``, whose ValueError becomes a DataError with its row."""
    checked = []
    for row, value in enumerate(dataset.with_format(None)[column][:], start=1):
        try:
            checked.append(check(value))
        except ValueError as error:
            raise DataError(str(error), split=split, row=row, column=column) from error
    return checked
