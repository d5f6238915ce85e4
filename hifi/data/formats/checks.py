"""Checks that the readers of all formats share: column names, texts, values that do not fit."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.formats.indexes import unnamed_column
from hifi.data.formats.limits import MAX_CHARACTERS
from hifi.data.formats.reader import Unfit
from hifi.data.types import first_true, is_list, is_text
from hifi.errors import DataError, MissingColumnError, quoted

_MOST_NAME_CHARACTERS = 256  # the limit in a job spec
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of surrogate pairs


def wanted_names(names: Sequence[str], columns: Collection[str] | None, *, most: int) -> list[str]:
    """Return the requested columns of a file, in the file's order.

    Args:
        names: all columns of the file.
        columns: the requested columns; None is all that have a name.
        most: the maximum number of requested columns.

    Raises:
        MissingColumnError: a requested column does not exist.
        DataError: a requested column has no name in the file; as for :func:`check_names`.
    """
    named = [name for name in names if name.strip()]
    for column in columns or ():
        if column not in named:
            unnamed = unnamed_columns(names).get(column)
            raise unnamed.error(column) if unnamed else MissingColumnError(column, there=named)
    wanted = [name for name in named if columns is None or name in columns]
    check_names(wanted, most=most)
    return wanted


def unnamed_columns(names: Sequence[str]) -> dict[str, Unfit]:
    """Return the columns without a name, by the names that pandas would make up for them."""
    reason = (
        "it has no name in the file, like the index that pandas writes; give it one in the file "
        "to use it"
    )
    return {
        unnamed_column(place, names=names): Unfit(type=pa.null(), row=None, reason=reason)
        for place, name in enumerate(names)
        if not name.strip()
    }


def check_names(names: Sequence[str], *, most: int) -> None:
    """Check the names and the number of columns.

    Args:
        names: of the columns.
        most: the maximum number of columns.

    Raises:
        DataError: there are no columns or too many, or a name is too long, not valid text or a
            duplicate.
    """
    if not names:
        raise DataError("there are no columns")
    if len(names) > most:
        raise DataError(f"{len(names)} columns; at most {most} are allowed")
    seen: set[str] = set()
    for place, name in enumerate(names, start=1):
        if len(name) > _MOST_NAME_CHARACTERS:
            raise DataError(
                f"the name of column {place} has {len(name)} characters; at most "
                f"{_MOST_NAME_CHARACTERS} are allowed"
            )
        if _NOT_TEXT.search(name):
            raise DataError(f"the name of column {place} is not valid text: {quoted(name)}")
        if name in seen:
            raise DataError("the column occurs more than once", column=name)
        seen.add(name)


def check_texts(array: pa.Array, *, first_row: int, column: str) -> None:
    """Refuse NUL characters, which tokenizers do not read and databases do not store.

    Args:
        array: a batch of the column, of a supported type.
        first_row: number of its first row.
        column: its name.

    Raises:
        DataError: a text has a NUL character; the error has the first such row.
    """
    if _has_nul(array):
        place = next(index for index in range(len(array)) if _has_nul(array.slice(index, 1)))
        raise DataError("the text holds a NUL character", row=first_row + place, column=column)


def first_too_long(array: pa.Array, *, first_row: int) -> tuple[int, int] | None:
    """Return the first text that is too long for every task: its row, and its characters.

    A dictionary is not unpacked.

    Args:
        array: a batch of a column of texts.
        first_row: number of its first row.
    """
    texts = array.dictionary if pa.types.is_dictionary(array.type) else array
    lengths = pc.utf8_length(texts)
    if (pc.max(lengths).as_py() or 0) <= MAX_CHARACTERS:
        return None
    if texts is not array:
        lengths = pc.take(lengths, array.indices)
    place = first_true(pc.fill_null(pc.greater(lengths, MAX_CHARACTERS), fill_value=False))
    return None if place is None else (first_row + place, int(lengths[place].as_py()))


def _has_nul(array: pa.Array) -> bool:
    if pa.types.is_struct(array.type):
        return any(map(_has_nul, array.flatten()))
    if is_list(array.type):
        return _has_nul(array.flatten())
    return is_text(array.type) and bool(pc.any(pc.match_substring(array, "\0")).as_py())


def first_misfit(values: Sequence[Any], *, fit: Callable[[Sequence[Any]], bool]) -> int:
    """Return the first value that does not fit into one column with those before it.

    Args:
        values: not all of them fit.
        fit: returns whether a prefix of the values fits into one column.

    Returns:
        Its index, from 0.
    """
    counts = range(1, len(values))  # of the prefixes to try; the whole is known not to fit
    return bisect_left(counts, x=True, key=lambda count: not fit(values[:count]))
