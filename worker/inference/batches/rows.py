"""The rows of a stored split, and the input that each is for a job."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hifi.data.formats.limits import MAX_CHARACTERS
from hifi.data.task_types import request_fields

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

    from hifi.data.spec import RequestColumns

_BATCH_ROWS = 256
_SHOWN_CHARACTERS = 60


class RowInvalidError(ValueError):
    """A row is no input for a job; the message names the column."""


def read_batches(file: parquet.ParquetFile, *, start: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows from number ``start`` (from 0) on, a few hundred at a time."""
    groups: list[int] = []
    passed = 0  # rows of the row groups before the first one that is read
    for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if groups or passed + rows > start:
            groups.append(number)
        else:
            passed += rows
    skipped = start - passed
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
        if skipped >= batch.num_rows:
            skipped -= batch.num_rows
            continue
        yield batch.slice(skipped)
        skipped = 0


def read_input(row: Mapping[str, Any], columns: RequestColumns) -> dict[str, Any]:
    """Return the input that a row is for a job.

    Args:
        row: with all of its columns.
        columns: those that the job reads, by the fields of an input.

    Raises:
        RowInvalidError: a cell cannot be read.
    """
    kinds = request_fields()
    readers = {
        "text": _read_text,
        "words": _read_texts,
        "choices": _read_texts,
        "image": _read_image,
    }
    return {
        field: readers[kinds[field].kind](row.get(names), names)
        if isinstance(names, str)
        else [_read_text(row.get(name), name) for name in names]
        for field, names in columns.items()
    }


def _read_text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise RowInvalidError(f"the column {column!r} has {_shown(value)}: a text is needed")
    if not value:
        raise RowInvalidError(f"the column {column!r} is an empty text")
    if len(value) > MAX_CHARACTERS:
        found = f"{len(value):,} characters, at most {MAX_CHARACTERS:,} are allowed"
        raise RowInvalidError(f"the column {column!r} has {found}")
    if "\0" in value:
        raise RowInvalidError(f"the column {column!r} has a NUL character; remove it")
    return value


def _read_texts(value: object, column: str) -> list[str]:
    if not isinstance(value, list) or not value:
        found = _shown(value)
        raise RowInvalidError(f"the column {column!r} has {found}: a list of texts is needed")
    return [_read_text(word, column) for word in value]


def _read_image(value: object, column: str) -> str:
    if isinstance(value, Mapping):  # a Parquet image is a struct of bytes and path
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise RowInvalidError(f"the column {column!r} has {_shown(value)}: an image is needed")
    return base64.b64encode(value).decode()


def _shown(value: object) -> str:
    return "no value" if value is None else repr(value)[:_SHOWN_CHARACTERS]
