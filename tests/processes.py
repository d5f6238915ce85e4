"""Fail a test that starts a process without saying so; thus `make test-fast` starts none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

# What a test says of itself: it starts processes, a browser among them.
MARKS = ("process", "browser")
# The events that CPython raises before it starts a process or becomes another one.
_EVENTS = {
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec"),
}


class _Watch:
    """Know which test runs, and whether it may start a process."""

    def __init__(self) -> None:
        self.offender: str | None = None

    def audit(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and self.offender is not None:
            pytest.fail(f"{self.offender} starts a process: mark it with pytest.mark.process")


_WATCH = _Watch()
sys.addaudithook(_WATCH.audit)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test with its fixtures."""
    is_marked = any(item.get_closest_marker(mark) for mark in MARKS)
    _WATCH.offender = None if is_marked else item.nodeid
    try:
        return (yield)
    finally:
        _WATCH.offender = None
