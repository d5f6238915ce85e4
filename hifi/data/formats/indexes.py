"""Recognise a table's index, which pandas stores beside its columns and which is no column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

# pandas' names of an index without one: in Parquet, and in CSV files that it wrote and read back.
_INDEX_NAME = re.compile(r"__index_level_\d+__|Unnamed: \d+(?:\.\d+)*")
_PANDAS_KEY = b"pandas"
_OWN_KEY = b"hifi.index"


def index_columns(
    names: Iterable[str], *, metadata: Mapping[bytes, bytes] | None = None
) -> frozenset[str]:
    """Return the columns that are a table's index.

    Args:
        names: of all columns.
        metadata: of a Parquet file's schema.
    """
    stored = metadata or {}
    listed = {*_texts(_parse(stored.get(_OWN_KEY)))}
    pandas = _parse(stored.get(_PANDAS_KEY))
    if isinstance(pandas, dict):  # an index of consecutive numbers is no text, and not stored
        listed.update(_texts(pandas.get("index_columns")))
    return frozenset(name for name in names if name in listed or _INDEX_NAME.fullmatch(name))


def index_metadata(columns: frozenset[str]) -> dict[bytes, bytes]:
    """Return schema metadata by which :func:`index_columns` recognises these columns again."""
    named = sorted(name for name in columns if not _INDEX_NAME.fullmatch(name))
    return {_OWN_KEY: json.dumps(named).encode()} if named else {}


def unnamed_column(place: int, *, names: Iterable[str]) -> str:
    """Return pandas' name for a column without one.

    Args:
        place: of the column, from 0.
        names: of all columns; the result is another one.
    """
    taken = set(names)
    name = f"Unnamed: {place}"
    while name in taken:
        name += ".1"
    return name


def _parse(text: bytes | None) -> object:
    try:
        return json.loads(text or b"null")
    except (ValueError, RecursionError):
        return None


def _texts(found: object) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
