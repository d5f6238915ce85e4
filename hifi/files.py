"""Atomic writes: a file or folder appears under its final name complete, or not at all."""

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

# Errors that occur when a file is written, never when one is read.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors hides the system's error in a text.
_SAFETENSORS_WRITE = re.compile(r"Error while serializing: .*\(os error (?P<number>\d+)\)")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file; sync it to disk and rename it to ``path`` at the end of the block.

    The temporary file is in the same folder, so the last step is one rename, which replaces an
    existing file at ``path``. On any failure, including an interrupt, the temporary file is removed
    and ``path`` is unchanged. A killed process leaves at most a file whose name begins with
    ``.hifi-``.

    Args:
        path: the final name, in an existing folder. A symbolic link is replaced, not followed.

    Yields:
        The path to write to; the file exists and is empty.

    Raises:
        StorageError: the folder is missing or not writable, the disk is full, or ``path`` is not a
            file. Errors that the caller's block raises about other files pass unchanged.

    Example:
        >>> with write_atomically("scores.json") as temporary:
        ...     temporary.write_text("[]")
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with _storage_errors(path):
            _refuse_special_target(path)
            temporary.touch(exist_ok=False)
        with _storage_errors(path, within=temporary):
            yield temporary
        with _storage_errors(path):
            _sync(temporary)
            temporary.replace(path)
        _sync_name(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_directory_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder; sync its files and rename it to ``path`` at the end of the block.

    A rename cannot replace a folder that has files in it, so ``path`` must be new or empty; a
    series (checkpoints) needs a name for each.

    Args:
        path: the final name; its parent must exist.

    Yields:
        An empty folder next to ``path``, to be filled.

    Raises:
        StorageError: ``path`` exists and is not an empty folder, its parent is missing or not
            writable, or the disk is full. Errors that the caller's block raises about other files
            pass unchanged.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with _storage_errors(path):
            _refuse_filled_target(path)
            temporary.mkdir()
        with _storage_errors(path, within=temporary):
            yield temporary
        with _storage_errors(path):
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
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_name(path: Path) -> None:
    """Flush the folder that holds the name; if that fails, the file exists nevertheless."""
    try:
        _sync(path.parent)
    except OSError as error:
        raise _storage_error(
            f"{path} is complete, but a power failure may undo it: its folder cannot be flushed to "
            f"disk: {error.strerror or error}",
            number=error.errno,
        ) from error


@contextmanager
def _storage_errors(path: Path, *, within: Path | None = None) -> Iterator[None]:
    """Turn the system's error about a failed write into a StorageError that names ``path``.

    Args:
        path: the final name.
        within: convert only errors about this file, or about files in this folder.
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
    """Return whether an error is about a file of ours; errors of a full disk name no file."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        return error.errno in _WRITE_ERRORS
    ours = within.absolute()
    return all(Path(os.fsdecode(name)).absolute().is_relative_to(ours) for name in names)


def _storage_error(message: str, *, number: int | None) -> StorageError:
    error = StorageError(message)
    error.errno = number
    return error
