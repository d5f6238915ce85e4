"""Folders for what a process needs on disk while it lives, cleaned up however it ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_LOCK = "lock"


@contextmanager
def own_folder(
    parent: Path, *, label: str, on_orphan: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """Make a folder for this process, and remove those of processes that are no more.

    Whatever folder lies beside it and is locked by nobody counts as one of these.

    A process holds the lock in its folder for as long as it lives, however it ends.

    Args:
        parent: holds such folders and nothing else; made where it is missing.
        label: how the folder's name begins.
        on_orphan: told the name of each folder whose process is no more.

    Yields:
        The folder; removed at the end.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{label}-{os.getpid()}-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        with _locked(parent):  # or another might take a folder away that has no lock yet
            for name in _remove_orphans(parent):
                if on_orphan is not None:
                    on_orphan(name)
            folder.mkdir()
            lock = stack.enter_context((folder / _LOCK).open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(parent: Path) -> list[str]:
    removed = []
    for folder in parent.iterdir():
        try:
            with (folder / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives, or another one is removing it
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder.name)
    return removed
