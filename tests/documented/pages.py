"""The snippets of README.md and docs/*.md, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import dedent

from tests.root import ROOT

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>.*)\n(?P<text>(?s:.*?))^(?P=indent)```$", re.MULTILINE
)


@dataclass(frozen=True)
class Snippet:
    """What a page tells its reader to type, or an answer that it shows.

    Attributes:
        place: the page and the line.
        kind: ``shell`` (one statement), ``python`` (a block), ``json`` (an answer), or another
            language's name.
        text: without prompts.
        shown: the output that the page shows for a statement; empty if it shows none.
    """

    place: str
    kind: str
    text: str
    shown: str = ""


def snippets(page: str) -> list[Snippet]:
    """Return the snippets of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Snippet] = []
    for fence in _FENCE.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, fence.start()) + 1}"
        block = dedent(fence["text"])
        if fence["kind"] == "sh":
            found += (Snippet(place, "shell", statement) for statement in _statements(block))
        elif fence["kind"] == "console":
            found += _session(place, block)
        else:
            found.append(Snippet(place, fence["kind"], block))
    return found


def _statements(block: str) -> Iterator[str]:
    """Split a block of shell commands, some of which span several lines."""
    pending = ""
    for line in block.splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote is still open
            continue
        is_whole = not line.endswith("\\") and words.count("do") == words.count("done")
        if words and is_whole:
            yield pending.strip()
            pending = ""
    if pending.strip():
        raise ValueError(f"a statement without an end: {pending}")


def _session(place: str, block: str) -> Iterator[Snippet]:
    """Split a block of commands after a prompt, each with its output."""
    before, *typed = re.split(r"^\$ ", block, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(f"{place}: output before the first command: {before}")
    for part in typed:
        command, _, shown = part.partition("\n")
        yield Snippet(place, "shell", command, shown)
