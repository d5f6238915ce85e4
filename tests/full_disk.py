"""A small disk that a test may fill, or make read-only."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DETACH = 2  # unmount even if a file is still open
_READ_ONLY, _REMOUNT = 1, 32
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder of a file system of four megabytes."""
    with small_disk(tmp_path / "small-disk", megabytes=4) as folder:
        yield folder


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory at a new folder for a block; skip where nobody may mount."""
    folder.mkdir(parents=True)
    if not hasattr(_libc, "mount"):
        pytest.skip("this system mounts no small disk")
    options = b"size=%dm" % megabytes
    if _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        number = ctypes.get_errno()
        if number != errno.EPERM:
            raise OSError(number, os.strerror(number), str(folder))
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        _libc.umount2(os.fsencode(folder), _DETACH)


def fill(folder: Path) -> Path:
    """Leave no room on a disk; return the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def make_read_only(folder: Path) -> None:
    """Refuse every write to a disk, also of the superuser."""
    if _libc.mount(None, os.fsencode(folder), None, _READ_ONLY | _REMOUNT, None) != 0:
        raise OSError(ctypes.get_errno(), f"{folder} stays writable")
