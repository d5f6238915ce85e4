"""How commands speak: results on stdout, everything else on stderr, and files safe to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from service.client.documents import Page

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130


def fail(message: str, *, code: int = EXIT_ERROR) -> int:
    """Tell an error in one line on stderr, and give the exit code."""
    print(f"hifi: error: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    return code


def print_line(text: str) -> None:
    """Print one line on stdout."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """Tell something in one line on stderr."""
    print(printable(message), file=sys.stderr, flush=True)  # noqa: T201


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_facts(entries: Mapping[str, str]) -> None:
    """Print names and values, a pair per line, however wide."""
    console = Console()
    width = max(map(len, entries))
    for name, value in entries.items():
        line = Text.assemble((f"{name:<{width}}  ", "bold"), printable(value))
        console.print(line, soft_wrap=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, a row per line, however wide; programs take ``--json``."""
    console = Console()
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for number, row in enumerate([header, *cells]):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        console.print(Text(line.rstrip(), style="" if number else "bold"), soft_wrap=True)


def print_page(
    page: Page[Any], *, header: Sequence[str], rows: Sequence[Sequence[str]], what: str
) -> None:
    """Print a page of a list, and how to see more of it."""
    if not rows:
        note(f"there are no {what}")
        return
    print_table(header, rows)
    if page["has_more"]:
        note(f"there are more: go on with --after {page['last_id']}")


def printable(text: str) -> str:
    """Replace what would steer the terminal: names are given by others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def format_bytes(size: int) -> str:
    """Write a size for people, in powers of 1000."""
    if size < 1000:
        return f"{size} bytes"
    number = float(size)
    for unit in ("kB", "MB"):
        number /= 1000
        if number < 1000:
            return f"{number:.2f} {unit}"
    return f"{number / 1000:.2f} GB"


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Write metrics on one line, the loss at the end."""
    ordered = sorted(metrics.items(), key=lambda entry: (entry[0] == "loss", entry[0]))
    return "  ".join(f"{name} {format_number(value, '.4f')}" for name, value in ordered)


def format_number(value: float | None, form: str) -> str:
    """Write a number; what is none, as a metric of a class that never occurs, is told so."""
    return "no number" if value is None else format(value, form)


def format_seconds(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_moment(moment: str | None) -> str:
    """Write a moment of the API without its fractions of a second."""
    return "" if moment is None else f"{moment[:10]} {moment[11:19]}"


def report_deleted(identifier: str, *, kind: str, as_json: bool) -> int:
    """Print that something is gone, and give the exit code."""
    if as_json:
        print_json({"id": identifier, "object": kind, "deleted": True})
    else:
        print_facts({"deleted": identifier})
    return EXIT_OK
