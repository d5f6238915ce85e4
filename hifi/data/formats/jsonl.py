"""Read JSON Lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hifi.data.formats.json_text import Entry, parse_line
from hifi.data.formats.limits import too_large_row
from hifi.data.formats.objects import ObjectReader
from hifi.errors import DataError


class JsonlReader(ObjectReader):
    """One split of JSON objects, one per line; blank lines are skipped and not counted."""

    @classmethod
    def read(cls, path: Path, *, most: int) -> Iterator[Entry]:
        """Yield the objects of a file, with or without a byte order mark."""
        with path.open("rb") as file:
            lines = iter(partial(file.readline, most + 1), b"")
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if len(line) > most:
                    raise DataError(too_large_row(most), line=number)
                if text.strip():
                    yield parse_line(text, number=number)
