"""Uploads: files are reopened for every attempt and streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client.errors import reading

if TYPE_CHECKING:
    from service.client.downloads import Watch


@contextmanager
def open_form(
    files: Mapping[str, Path], *, fields: Mapping[str, str], watch: Watch | None = None
) -> Iterator[Mapping[str, Any]]:
    """Open the files of a multipart form, and yield the HTTP client's arguments.

    ``watch`` is called with the bytes so far and the total.

    Raises:
        LocalFileError: a file cannot be read.
    """
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if watch is not None:
            watch(done, total)

    with ExitStack() as stack:
        opened = {}
        for field, path in files.items():
            with reading(path):
                opened[field] = stack.enter_context(_CountedFile(path, count))
        total = sum(path.stat().st_size for path in files.values())
        form = {field: (files[field].name, file) for field, file in opened.items()}
        yield {"data": dict(fields), "files": form}


class _CountedFile(FileIO):
    """A file that counts the bytes read from it."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(path)
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._count(len(chunk))
        return chunk
