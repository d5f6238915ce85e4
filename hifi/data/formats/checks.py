"""Checks that the readers of all formats share: column names, texts, values that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.types import is_list, is_text
from hifi.errors import DataError, MissingColumnError, quoted

_MOST_NAME_CHARACTERS = 256  # the limit in a job spec


def wanted_names(names: Sequence[str], columns: Collection[str] | None) -> list[str]:
    """Return the requested columns of a file, in the file's order.

    Args:
        names: all columns of the file.
        columns: the requested columns; None is all of them.

    Raises:
        MissingColumnError: a requested column does not exist.
    """
    if columns is None:
        return list(names)
    for column in columns:
        if column not in names:
            raise MissingColumnError(column, there=names)
    return [name for name in names if name in columns]


def check_names(names: Sequence[str], *, most: int) -> None:
    """Check the names and the number of columns.

    Args:
        names: of the columns.
        most: the maximum number of columns.

    Raises:
        DataError: there are no columns or too many, or a name is empty, too long, not valid text
            or a duplicate.
    """
    if not names:
        raise DataError("there are no columns")
    if len(names) > most:
        raise DataError(f"{len(names)} columns; at most {most} are allowed")
    seen: set[str] = set()
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"column {place} has no name: name it, or leave it out (a table's "
                "index is written without a name)"
            )
        if len(name) > _MOST_NAME_CHARACTERS:
            raise DataError(
                f"the name of column {place} has {len(name)} characters; at most "
                f"{_MOST_NAME_CHARACTERS} are allowed"
            )
        if not name.isprintable() and ("\0" in name or not _is_encodable(name)):
            raise DataError(f"the name of column {place} is not valid text: {quoted(name)}")
        if name in seen:
            raise DataError("the column occurs more than once", column=name)
        seen.add(name)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(array: pa.Array, *, first_row: int, column: str) -> None:
    """Refuse NUL characters, which tokenizers do not read and databases do not store.

    Args:
        array: a batch of the column, of a supported type.
        first_row: number of its first row.
        column: its name.

    Raises:
        DataError: a text has a NUL character; the error has the first such row.
    """
    if not any(_has_nul(texts) for texts in _texts_in(array)):
        return
    for index in range(len(array)):
        if any(_has_nul(texts) for texts in _texts_in(array.slice(index, 1))):
            raise DataError("the text holds a NUL character", row=first_row + index, column=column)


def _texts_in(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(array.type):
        for piece in array.flatten():
            yield from _texts_in(piece)
    elif is_list(array.type):
        yield from _texts_in(array.flatten())
    elif is_text(array.type):
        yield array


def _has_nul(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring(texts, "\0")).as_py())


def first_misfit(values: Sequence[Any], *, fit: Callable[[Sequence[Any]], bool]) -> int:
    """Return the first value that does not fit into one column with those before it.

    Args:
        values: not all of them fit.
        fit: returns whether a prefix of the values fits into one column.

    Returns:
        Its index, from 0.
    """
    low, high = 0, len(values)  # the first `low` values fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(values[:middle]) else (low, middle)
    return high - 1
