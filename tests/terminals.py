"""Terminals that cannot show every character."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# What Windows, an old Unix and a bare container have.
NARROW_ENCODINGS = ("cp1252", "cp437", "latin-1", "ascii", "koi8-r")


def use_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Callable[[], str]:
    """Replace stdout by a strict one of that encoding; return a function that reads it."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))

    def read() -> str:
        sys.stdout.flush()
        return written.getvalue().decode(encoding)

    return read
