"""Read a JSON file: a list of objects, an object around such a list, SQuAD, or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from hifi.data.formats.json_text import Entry, JsonText, open_json
from hifi.data.formats.jsonl import JsonlReader
from hifi.data.formats.objects import ObjectReader
from hifi.data.formats.squad import is_article, read_articles
from hifi.errors import DataError

_DATA = "data"
_LAYOUTS = (
    "a .json file must be a list of objects, one for each row (which pandas writes with "
    "orient='records'), or JSON Lines, or an object whose entry 'data' is a list of objects or of "
    "SQuAD's articles"
)


class JsonReader(ObjectReader):
    """One split of JSON objects in one of these layouts.

    - a list of objects;
    - an object whose entry ``data`` is a list of objects; other entries are not read;
    - the same with the articles of SQuAD, of which every question is a row;
    - JSON Lines, whatever the file is called.
    """

    @classmethod
    def read(cls, path: Path, *, most: int) -> Iterator[Entry]:
        """Yield the objects of a file, with or without a byte order mark."""
        if cls.holds_lines(path, most=most):
            yield from JsonlReader.read(path, most=most)
            return
        has_articles = _has_articles(path, most=most)
        with open_json(path, most=most) as text:
            start = text.peek()
            if start == "[":
                yield from _read_list(text)
            elif start == "{":
                yield from _read_data(text, has_articles=has_articles)
            elif start:
                text.value()  # refuses text that is not JSON
                raise DataError(_LAYOUTS)
            text.end()

    @classmethod
    def holds_lines(cls, path: Path, *, most: int) -> bool:
        """Return whether a file is JSON Lines, from its first two lines.

        Args:
            path: the file.
            most: the bytes of a line, at most.
        """
        with open_json(path, most=most) as text:
            if text.peek() != "{":
                return False
        lines = JsonlReader.read(path, most=most)
        try:
            first = next(lines)
        except DataError:
            return False
        try:
            is_only = next(lines, None) is None
        except DataError:
            is_only = False
        return not (is_only and _is_whole_file(first.values))


def _is_whole_file(values: Mapping[str, Any]) -> bool:
    """Return whether an object is no row: it has a list of them, or columns as pandas has them."""
    are_columns = all(isinstance(value, dict) and "0" in value for value in values.values())
    return isinstance(values.get(_DATA), list) or (bool(values) and are_columns)


def _has_articles(path: Path, *, most: int) -> bool:
    """Return whether a file is an object whose list ``data`` begins with an article of SQuAD."""
    with open_json(path, most=most) as text:
        if text.peek() == "{":
            for name in text.members(what="the file"):
                if name == _DATA and text.peek() == "[":
                    return any(is_article(text) for _ in islice(text.elements(what="data"), 1))
    return False


def _read_list(text: JsonText) -> Iterator[Entry]:
    for _ in text.elements(what="the list"):
        yield text.entry(what="every entry of the list")


def _read_data(text: JsonText, *, has_articles: bool) -> Iterator[Entry]:
    """Yield the rows of an object's list ``data``."""
    is_found = False
    for name in text.members(what="the file"):
        if name == _DATA and text.peek() == "[":
            is_found = True
            yield from read_articles(text) if has_articles else _read_list(text)
    if not is_found:
        raise DataError(_LAYOUTS)
