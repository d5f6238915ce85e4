"""Files and folders that appear under their final name complete, or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hifi.errors import HifiError, StorageError

TEMPORARY_PREFIX = ".hifi-"

# What writing to an open file fails with, and reading one never does.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors hides the system's error in a text.
_SAFETENSORS_WRITE = re.compile(r"Error while serializing: .*\(os error (?P<number>\d+)\)")


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
            something other than a file. What the caller's own block raises about other files
            passes unchanged.

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
        with _naming(path, within=temporary):
            yield temporary
        with _naming(path):
            _sync(temporary)
            temporary.replace(path)
        _sync_name(path)
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
            to us, or the disk is full. What the caller's own block raises about other files passes
            unchanged.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with _naming(path):
            _refuse_filled_target(path)
            temporary.mkdir()
        with _naming(path, within=temporary):
            yield temporary
        with _naming(path):
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            temporary.replace(path)
        _sync_name(path)
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


def _sync_name(path: Path) -> None:
    """Put the name on disk; when that fails, the file is there all the same."""
    try:
        _sync(path.parent)
    except OSError as error:
        raise _storage_error(
            f"{path} is complete, but a power failure may undo it: its folder cannot be put on "
            f"disk: {error.strerror or error}",
            number=error.errno,
        ) from error


@contextmanager
def _naming(path: Path, *, within: Path | None = None) -> Iterator[None]:
    """Turn what the system says about a failed write into an error that names ``path``.

    Args:
        path: the final name.
        within: only failures of writing this file, or in this folder, are ours to name.
    """
    try:
        yield
    except HifiError:
        raise
    except OSError as error:
        if within is not None and not _is_about(within, error):
            raise
        reason = error.strerror or str(error)
        raise _storage_error(f"cannot write {path}: {reason}", number=error.errno) from error
    except SafetensorError as error:
        match = _SAFETENSORS_WRITE.match(str(error))
        if within is not None and match is None:
            raise
        number = int(match["number"]) if match else None
        raise _storage_error(f"cannot write {path}: {error}", number=number) from error


def _is_about(within: Path, error: OSError) -> bool:
    """Tell whether an error is about a file of ours; a full disk names no file at all."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        return error.errno in _WRITE_ERRORS
    ours = within.absolute()
    return all(Path(os.fsdecode(name)).absolute().is_relative_to(ours) for name in names)


def _storage_error(message: str, *, number: int | None) -> StorageError:
    error = StorageError(message)
    error.errno = number
    return error
