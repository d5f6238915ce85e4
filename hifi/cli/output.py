"""Where results go, and refusing early what could not be written in the end."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hifi.errors import StorageError

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def fail(message: str, *, code: int = EXIT_ERROR) -> int:
    """Tell an error in one line on stderr, and give the exit code."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    print(f"hifi: error: {line}", file=sys.stderr)  # noqa: T201
    return code


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def describe_file(path: Path) -> dict[str, Any]:
    """Give a file's size and hash, under the names of the API's artifact."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def open_to_others(folder: Path) -> None:
    """Give every file of a model folder the permissions of its configuration.

    The weights come from safetensors for their owner's eyes alone, whatever the umask says.
    """
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def size_of_folder(folder: Path) -> int:
    """Add up the sizes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_new_file(path: Path) -> None:
    """Refuse a file name that could not be written, before any work is done for it.

    Raises:
        StorageError: the folder is missing or closed to us, or the name is that of a folder, a
            device or a pipe.
    """
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise StorageError(f"cannot write {path}: it is not a regular file; name another one")
    _check_folder(path)


def check_new_directory(path: Path) -> None:
    """Refuse a folder name that could not be written, before any work is done for it.

    Raises:
        StorageError: it exists and is not an empty folder, or its parent is missing or closed.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"cannot write {path}: a file of that name exists; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise StorageError(f"cannot write {path}: the folder is not empty; name a new one")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise StorageError(
            f"cannot write {path}: there is no folder {parent}; create it first (mkdir -p {parent})"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"cannot write {path}: the folder {parent} is not writable for this user; "
            "choose another one"
        )
