"""Facts and services of the machine on which a process runs."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Files of a folder that has been a home before; no other folder is changed.
_MARKS = ("serve.lock", "hifi.db")
_LONGEST_NAME = 40
LOCK = "lock"  # the file in a process's own folder that it holds locked as long as it lives


def machine_name() -> str:
    """Return the letters, digits and hyphens of the host name, for use in identifiers."""
    name = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")
    return name[:_LONGEST_NAME]


def end_with_parent(signal_number: int) -> None:
    """Make the kernel send this process a signal when its parent ends; works only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def living_folders(parent: Path) -> Sequence[str]:
    """Return the names of the folders in ``parent`` whose process is alive, on any machine."""
    locks = sorted(parent.glob(f"*/{LOCK}"))
    return [lock.parent.name for lock in locks if _is_held(lock)]


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # its process has just ended
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def private_files() -> Iterator[None]:
    """Create all files and folders for this user only during a block.

    The umask belongs to the whole process and its children, so this is for a command that runs a
    service, and not for a library.
    """
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Create a folder that only this user can enter.

    A home that an earlier version left open to others is closed. Any other folder that is open is
    left as it is, with a warning: it may have another use.

    Raises:
        OSError: it cannot be created.
    """
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    found = folder.stat()
    if not found.st_mode & _OTHERS:
        return
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    is_home = any((folder / mark).exists() for mark in _MARKS)
    if found.st_uid == os.geteuid() and is_home:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
        warnings.warn(f"{folder} was open to other users ({mode}); now it is not", stacklevel=2)
    else:
        warnings.warn(
            f"{folder} is open to other users ({mode}): what is written into it is private, its "
            f"names are not; if it has no other use, close it: chmod 700 {folder}",
            stacklevel=2,
        )
