"""Temporary folders of processes, cleaned up however the process ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from store.machine import LOCK


@contextmanager
def own_folder(
    parent: Path, *, label: str, on_orphan: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """Create a folder for this process, and remove those of dead processes.

    A process holds a lock in its folder as long as it lives. Any sibling folder without a lock
    holder counts as one of a dead process.

    Args:
        parent: holds only such folders; created if missing.
        label: the prefix of the folder's name.
        on_orphan: called with the name of each removed folder of a dead process.

    Yields:
        The folder; removed at the end.

    Raises:
        OSError: it cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{label}-{os.getpid()}-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        with _locked(parent):  # another process must not remove a folder that has no lock yet
            for name in _remove_orphans(parent):
                if on_orphan is not None:
                    on_orphan(name)
            folder.mkdir()
            lock = stack.enter_context((folder / LOCK).open("a"))
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
            with (folder / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process is alive, or another process is removing it
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder.name)
    return removed
