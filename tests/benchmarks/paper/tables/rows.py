"""Markdown tables as lists of cells."""

from __future__ import annotations

from collections.abc import Iterable


def cells_of(texts: Iterable[str]) -> list[list[str]]:
    """Return the cells of every row of a table, without its titles."""
    rows = [text.strip("| ").split(" | ") for text in texts if text.startswith("|")]
    return [row for row in rows if not row[0].startswith("---")]
