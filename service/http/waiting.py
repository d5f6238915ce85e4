"""Run CPU work without blocking the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

_Result = TypeVar("_Result")

_SMALL_BYTES = 64 << 10  # take less time than starting a thread


async def in_thread_if_large(work: Callable[[], _Result], *, size: int) -> _Result:
    """Run CPU work: in a thread if its input of ``size`` bytes is large, else directly."""
    return work() if size <= _SMALL_BYTES else await run_in_threadpool(work)
