"""Output of commands: results on stdout, everything else on stderr, numbers formatted for people.

It also checks before any work that a result can be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from hifi.errors import StorageError

_Document = TypeVar("_Document", bound=Mapping[str, Any])

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def make_output_encodable() -> None:
    r"""Let stdout and stderr accept every character, in whatever encoding they have.

    A character that the encoding lacks is written as ``\u6570``: it must not make a command fail
    whose work is done. A stream that was closed by the caller is replaced by an empty one.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(message: str, *, code: int = EXIT_ERROR) -> int:
    """Print an error on one line of stderr, and return the exit code."""
    print(f"hifi: error: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    return code


def note(message: str) -> None:
    """Print one line on stderr."""
    print(printable(message), file=sys.stderr, flush=True)  # noqa: T201


def print_line(text: str) -> None:
    """Print one line on stdout."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout; escaped where its encoding needs it."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if not _can_show(text, encoding=sys.stdout.encoding):
        text = json.dumps(document, indent=2)
    sys.stdout.write(f"{text}\n")


def _can_show(text: str, *, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def report(
    document: _Document, describe: Callable[[_Document], Mapping[str, str]], *, as_json: bool
) -> int:
    """Print the result of a command, and return the exit code.

    Args:
        document: the result.
        describe: returns names and values for people.
        as_json: whether to print the document itself.
    """
    if as_json:
        print_json(document)
    else:
        print_facts(describe(document))
    return EXIT_OK


def print_facts(entries: Mapping[str, str]) -> None:
    """Print names and values, one pair per line without wrapping; empty values are left out."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    shown = {name: value for name, value in entries.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        line = Text.assemble((f"{name:<{width}}  ", "bold"), printable(value))
        console.print(line, soft_wrap=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, one row per line without wrapping; programs use ``--json``."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for number, row in enumerate([header, *cells]):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        console.print(Text(line.rstrip(), style="" if number else "bold"), soft_wrap=True)


def printable(text: str) -> str:
    """Replace control characters, because files and names come from others."""
    return "".join(character if character.isprintable() else "?" for character in text)


def format_bytes(size: int) -> str:
    """Format a size in powers of 1000."""
    if size < 1000:
        return f"{size} bytes"
    number = float(size)
    for unit in ("kB", "MB"):
        number /= 1000
        if number < 1000:
            return f"{number:.2f} {unit}"
    return f"{number / 1000:.2f} GB"


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Format metrics on one line, the loss last."""
    ordered = sorted(metrics.items(), key=lambda entry: (entry[0] == "loss", entry[0]))
    return "  ".join(f"{name} {format_number(value, '.4f')}" for name, value in ordered)


def format_number(value: float | None, form: str) -> str:
    """Format a number; None, as for a metric of a class that never occurs, is ``no number``."""
    return "no number" if value is None else format(value, form)


def format_seconds(seconds: float) -> str:
    """Format a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_moment(moment: str | None) -> str:
    """Format a timestamp of the API in local time with its zone, to the second."""
    if moment is None:
        return ""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size and hash, under the names of the API's artifact."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def open_to_others(folder: Path) -> None:
    """Set the permissions of every file of a model folder to those of its configuration.

    safetensors makes the weights readable for their owner only, whatever the umask is.
    """
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def size_of_folder(folder: Path) -> int:
    """Return the total size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_new_file(path: Path) -> None:
    """Check that a file can be written, before any work is done for it.

    Raises:
        StorageError: the parent folder is missing or not writable, or the path is a folder, a
            device or a pipe.
    """
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise StorageError(f"cannot write {path}: it is not a regular file; name another one")
    _check_folder(path)


def check_new_directory(path: Path) -> None:
    """Check that a folder can be written, before any work is done for it.

    Raises:
        StorageError: it exists and is not an empty folder, or its parent is missing or not
            writable.
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
            f"cannot write {path}: the folder {parent} does not exist; "
            f"create it first (mkdir -p {parent})"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"cannot write {path}: the folder {parent} is not writable for this user; "
            "choose another one"
        )
