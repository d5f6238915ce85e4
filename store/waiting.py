"""Work that a caller waits for, and that ends when the caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

_Done = TypeVar("_Done")
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class CallerLeftError(Exception):
    """The caller has hung up: nobody reads the answer."""


async def while_connected(receive: _Receive, work: Coroutine[Any, Any, _Done]) -> _Done:
    """Wait for work, and cancel it when its caller hangs up.

    Args:
        receive: ASGI's, for a request whose body was read, or has none.
        work: what the caller waits for.

    Returns:
        What the work returns; also where the caller leaves at the same moment, so that what
        it holds is closed.

    Raises:
        CallerLeftError: the caller has hung up.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_hang_up(receive))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            leaving.result()  # raises what receiving raised
            raise CallerLeftError
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


async def _wait_for_hang_up(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
