"""Wait for a condition, at most for a limit that grows with the machine's load."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
USUAL_SECONDS = 30.0
_PAUSE_SECONDS = 0.01
_LONG_PAUSE_SECONDS = 0.05  # after the first second: asking takes a core from what is waited for


def patience(seconds: float = USUAL_SECONDS) -> float:
    """Scale a time limit by the machine's load.

    Args:
        seconds: the limit on an idle machine.

    Returns:
        seconds × (1 + ready processes per core).
    """
    cores = os.cpu_count() or 1
    return seconds * (1 + os.getloadavg()[0] / cores)


def eventually(
    condition: Callable[[], T], *, seconds: float = USUAL_SECONDS, message: str = ""
) -> T:
    """Wait until a condition holds that other threads or processes cause.

    Args:
        condition: called repeatedly until it returns something true.
        seconds: the limit on an idle machine.
        message: what is waited for.

    Returns:
        what the condition returned.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    began = time.monotonic()
    while not (found := condition()):
        _check(began, seconds=seconds, message=message or str(condition))
        time.sleep(_pause(began))
    return found


async def eventually_async(
    condition: Callable[[], T], *, seconds: float = USUAL_SECONDS, message: str = ""
) -> T:
    """Wait like :func:`eventually` without blocking the event loop."""
    began = time.monotonic()
    while not (found := condition()):
        _check(began, seconds=seconds, message=message or str(condition))
        await asyncio.sleep(_pause(began))
    return found


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Assert that a block takes at most ``seconds`` on an idle machine."""
    began = time.monotonic()
    yield
    _check(began, seconds=seconds, message="the end of the block")


def _pause(began: float) -> float:
    return _PAUSE_SECONDS if time.monotonic() - began < 1.0 else _LONG_PAUSE_SECONDS


def _check(began: float, *, seconds: float, message: str) -> None:
    took, limit = time.monotonic() - began, patience(seconds)
    assert took < limit, f"{message}: not within {limit:.1f} s ({seconds} s times the load)"
