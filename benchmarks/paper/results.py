"""A file of results, one JSON line per finished cell, which several processes write at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.paper.cells import Cell, Line
from hifi.errors import DataError

COMMITTED = Path(__file__).parent / "results" / "runs.jsonl"  # the runs that pages show
_CLAIM_BYTES = 7  # places of claims in the lock file; they never have bytes


class Results:
    """The result file of one process.

    A killed process leaves at most a last line without an end, which does not count and is removed
    before the next line is written. ``<file>.lock`` is locked byte by byte: the first byte while
    the file is read or written, one of the others for each cell that a process is running. The
    kernel frees the locks of a process that ends. Two objects of one process do not exclude each
    other.

    Args:
        path: created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f"{path.name}.lock").open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def finished(self) -> dict[Cell, Line]:
        """Read the finished cells.

        Raises:
            DataError: a line before the last one is not a result.
        """
        with self._locked():
            return {Cell.of(line): line for line in read_lines(self._path)}

    def append(self, line: Line) -> None:
        """Write a line to disk, whole or not at all."""
        content = f"{json.dumps(line, allow_nan=False)}\n".encode()
        with self._locked(), self._path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rpartition(b"\n")
            file.truncate(len(whole[0]) + len(whole[1]))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Claim a cell for a block; yield False if another process has it."""
        place = 1 + int.from_bytes(hashlib.sha256(cell.key).digest()[:_CLAIM_BYTES], "big")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, 0)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a result file; a last line without an end does not count.

    Raises:
        DataError: another line is not a result.
    """
    if not path.exists():
        return
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, content in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            line = json.loads(content)
            Cell.of(line)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number} is not a result of this harness") from error
        yield line
