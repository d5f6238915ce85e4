"""Uploads: files are reopened for every attempt and streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from service.client.errors import LocalFileError

if TYPE_CHECKING:
    from typing import BinaryIO

    from service.client.downloads import Watch


class Upload:
    """A multipart form of files and fields; ``watch`` gets the bytes so far and the total."""

    def __init__(
        self, files: Mapping[str, Path], *, fields: Mapping[str, str], watch: Watch | None = None
    ) -> None:
        self._files = files
        self._fields = fields
        self._watch = watch

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Any]]:
        """Open the files, and yield the HTTP client's arguments.

        Raises:
            LocalFileError: a file cannot be read.
        """
        with ExitStack() as stack:
            opened = {field: _open(path, stack) for field, path in self._files.items()}
            total = sum(path.stat().st_size for path in self._files.values())
            counter = _Counter(total, self._watch)
            yield {
                "data": dict(self._fields),
                "files": {
                    field: (self._files[field].name, cast("BinaryIO", _Counted(file, counter)))
                    for field, file in opened.items()
                },
            }


def _open(path: Path, stack: ExitStack) -> BinaryIO:
    try:
        return stack.enter_context(path.open("rb"))
    except OSError as error:
        raise LocalFileError(f"cannot read {path}: {error.strerror or error}") from error


class _Counter:
    """Sums the bytes read from all files."""

    def __init__(self, total: int, watch: Watch | None) -> None:
        self._total = total
        self._watch = watch
        self._done = 0

    def add(self, size: int) -> None:
        self._done += size
        if self._watch is not None:
            self._watch(self._done, self._total)


class _Counted(BufferedIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, file: BinaryIO, counter: _Counter) -> None:
        self._file = file
        self._counter = counter

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = self._file.read(-1 if size is None else size)
        self._counter.add(len(chunk))
        return chunk

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()
