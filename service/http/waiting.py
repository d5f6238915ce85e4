"""Work that takes long: given up with the caller who waits for it, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from starlette.requests import Request

_Done = TypeVar("_Done")

_HANG_UP_SECONDS = 0.5  # until we see that a caller who waits for us has gone
_SMALL_BYTES = 64 << 10  # are through sooner than a thread has begun with them


async def while_connected(request: Request, work: Coroutine[Any, Any, _Done]) -> _Done:
    """Wait for work that takes long, and give it up when the caller does.

    Raises:
        ClientDisconnect: the caller has hung up.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=_HANG_UP_SECONDS))[0]:
            # What is done by now is given all the same: somebody has to close it.
            if await request.is_disconnected() and not task.done():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()


async def aside(work: Callable[[], _Done], *, size: int) -> _Done:
    """Do work that only computes: in a thread where it is for long, so that others are answered.

    Args:
        work: needs no event loop.
        size: bytes of what it looks at.
    """
    return work() if size <= _SMALL_BYTES else await run_in_threadpool(work)
