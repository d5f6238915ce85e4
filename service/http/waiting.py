"""Work that only computes, done where it keeps nobody else waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

_Done = TypeVar("_Done")

_SMALL_BYTES = 64 << 10  # take less time than starting a thread


async def aside(work: Callable[[], _Done], *, size: int) -> _Done:
    """Do work that only computes, in a thread where it takes long.

    Args:
        work: needs no event loop.
        size: bytes of what it looks at.
    """
    return work() if size <= _SMALL_BYTES else await run_in_threadpool(work)
