"""Fail an unmarked test that starts a process; so `make test-fast` starts none."""

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


class ProcessStartedError(RuntimeError):
    """An unmarked test tried to start a process."""


class Watch:
    """Track whether the current test may start a process, and whether it tried.

    Attributes:
        is_on: no process may be started now.
        attempts: what was about to start one, and did not.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.attempts: list[str] = []

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise before a process is started."""
        if self.is_on and event in _EVENTS:
            self.attempts.append(f"{event} {arguments[0] if arguments else ''}".strip())
            raise ProcessStartedError(self.attempts[-1])

    def check(self) -> None:
        """Fail a test that tried, even if the code under test caught the error."""
        attempts, self.attempts = self.attempts, []
        if attempts:
            pytest.fail(f"starts a process: mark it with pytest.mark.process ({attempts[0]})")


WATCH = Watch()
sys.addaudithook(WATCH.audit)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch an unmarked test and its fixtures."""
    WATCH.is_on = not any(item.get_closest_marker(mark) for mark in MARKS)
    try:
        return (yield)
    finally:
        WATCH.is_on = False


@pytest.hookimpl(wrapper=True)
def _check_afterwards() -> Iterator[None]:
    """Fail a test that starts a process itself, or whose fixtures do."""
    try:
        return (yield)
    finally:
        WATCH.check()


pytest_runtest_setup = pytest_runtest_call = _check_afterwards
