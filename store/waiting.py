"""Cancel work when the caller who waits for it disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

_Done = TypeVar("_Done")
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class CallerLeftError(Exception):
    """The caller has disconnected."""


async def while_connected(receive: _Receive, work: Coroutine[Any, Any, _Done]) -> _Done:
    """Wait for work; cancel it if its caller disconnects, and wait for its end.

    Args:
        receive: of ASGI, for a request whose body is already read.
        work: to wait for.

    Returns:
        The result of the work, even if the caller disconnects at the same moment, so that the
        result can be closed.

    Raises:
        CallerLeftError: the caller has disconnected.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_hang_up(receive))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            leaving.result()  # raises an error of ``receive``
            raise CallerLeftError
        return task.result()
    finally:
        leaving.cancel()
        if task.cancel():
            await asyncio.wait([task])


async def _wait_for_hang_up(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
