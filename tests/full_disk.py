"""A small disk that a test may fill."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_OPTIONS = b"size=4m"
_DETACH = 2  # unmount even if a file is still open
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder of a small file system in memory; skip where it may not be mounted."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    if not hasattr(_libc, "mount") or _mount(folder) != 0:
        pytest.skip(f"cannot mount a small disk here: {os.strerror(ctypes.get_errno())}")
    yield folder
    _libc.umount2(os.fsencode(folder), _DETACH)


def _mount(folder: Path) -> int:
    return int(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, _OPTIONS))


def fill(folder: Path) -> None:
    """Leave no room on a disk."""
    file = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError:
        os.close(file)
