"""Files and folders that appear under their final name complete, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hifi.errors import HifiError, StorageError

TEMPORARY_PREFIX = ".hifi-"


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Lend a temporary file that takes the name ``path`` once it is written and on disk.

    The temporary file lies in the same folder, so that the last step is one rename; an existing
    file at ``path`` is replaced by it. On any failure, an interrupt among them, the temporary file
    is removed and ``path`` is what it was. A process that is killed leaves at most a file whose
    name begins with ``.hifi-``.

    Args:
        path: the final name, in a folder that exists. A symbolic link is replaced, not followed.

    Yields:
        The path to write to; the file is there and empty.

    Raises:
        StorageError: the folder is missing or closed to us, the disk is full, ``path`` is
            something other than a file.

    Example:
        >>> with write_atomically("scores.json") as temporary:
        ...     temporary.write_text("[]")
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with _naming(path):
            _refuse_special_target(path)
            temporary.touch(exist_ok=False)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_directory_atomically(path: str | Path) -> Iterator[Path]:
    """Lend a temporary folder that takes the name ``path`` once everything in it is on disk.

    A folder cannot replace a filled one in one step, so ``path`` must be new or empty; whoever
    writes a series (checkpoints) gives each its own name.

    Args:
        path: the final name; its parent must exist.

    Yields:
        An empty folder next to ``path``, to be filled.

    Raises:
        StorageError: ``path`` exists and is not an empty folder, its parent is missing or closed
            to us, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with _naming(path):
            _refuse_filled_target(path)
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            temporary.replace(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"


def _refuse_special_target(path: Path) -> None:
    """Refuse a folder or a device: a rename would fail on one and destroy the other."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OSError(errno.EINVAL, "not a regular file")


def _refuse_filled_target(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file of that name exists")
        if any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, "the folder exists and is not empty")


def _sync(path: Path) -> None:
    """Make the operating system put a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into an error that names ``path``."""
    try:
        yield
    except HifiError:
        raise
    except OSError as error:
        raise _storage_error(path, error.strerror or str(error), number=error.errno) from error
    except SafetensorError as error:  # safetensors hides the system's error in a text
        raise _storage_error(path, str(error), number=None) from error


def _storage_error(path: Path, reason: str, *, number: int | None) -> StorageError:
    error = StorageError(f"cannot write {path}: {reason}")
    error.errno = number
    return error
