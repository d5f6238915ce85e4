"""Turns at what few can have at once, tenant after tenant; and doing a thing once for all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Done = TypeVar("_Done")


class Turns:
    """Lets so many be at something at once; where more want to be, tenants take turns.

    So a tenant's first turn waits for no more than one of each other's, however many they want.
    Used on one event loop.

    Args:
        most: at once.
        most_each: of one tenant, so that what hangs of one leaves room for the others.
        spare: so many are left to tenants that have none, so that what hangs of a few does, too.
    """

    def __init__(self, most: int, *, most_each: int, spare: int) -> None:
        self._free = most
        self._most_each = most_each
        self._spare = spare
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # whose turn is next comes first

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator[None]:
        """Have a turn for the time of a block."""
        await self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)

    async def take(self, tenant: str) -> None:
        """Wait for a turn, and have it until it is given back."""
        if self._may_have(tenant):
            self._grant(tenant)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(tenant, turn)
            else:  # it came at the same moment
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Let the next who waits have the turn."""
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:  # tenants that hold nothing are not remembered
            del self._held[tenant]
        while (following := next(filter(self._may_have, self._waiting), None)) is not None:
            self._grant_next(following)

    def _may_have(self, tenant: str) -> bool:
        held = self._held.get(tenant, 0)
        return held < self._most_each and self._free > (self._spare if held else 0)

    def _grant_next(self, tenant: str) -> None:
        turns = self._waiting.pop(tenant)
        turn = turns.popleft()
        if turns:
            self._waiting[tenant] = turns  # behind the others
        if not turn.done():  # one that is being given up is only forgotten
            self._grant(tenant)
            turn.set_result(None)

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(tenant)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[tenant]

    def _grant(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] += 1


class FairPool:
    """Runs work in a few threads, given to tenants in turn. Used on one event loop.

    Args:
        threads: how many.
        most_each: of one tenant.
        spare: threads that are left to tenants that have none.
        name: of the threads.
    """

    def __init__(self, threads: int, *, most_each: int, spare: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns = Turns(threads, most_each=most_each, spare=spare)

    async def run(self, work: Callable[[], _Done], *, tenant: str) -> _Done:
        """Give what the work gives; where that is not waited for, it has its thread all the same.

        Args:
            work: done in a thread.
            tenant: whose it is.
        """
        loop = asyncio.get_running_loop()
        await self._turns.take(tenant)

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(partial(self._turns.give_back, tenant))

        future = self._pool.submit(work)
        future.add_done_callback(leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Begin nothing any more; what is under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class SingleFlight(Generic[_Key, _Done]):
    """Does what several want at once a single time. Used on one event loop.

    It goes on when those who wait for it give up: others will want it.
    """

    def __init__(self) -> None:
        self._tasks: dict[_Key, asyncio.Task[_Done]] = {}

    async def join(self, key: _Key, work: Callable[[], Coroutine[None, None, _Done]]) -> _Done:
        """Wait for the work of a key, which is begun where nobody has begun it.

        Args:
            key: tells one work from another.
            work: begins it.
        """
        task = self._tasks.get(key)
        if task is None or task.done():  # and has not been taken out yet
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(partial(self._end, key))
        return await asyncio.shield(task)

    def _end(self, key: _Key, task: asyncio.Task[_Done]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # whoever still waits for it sees it, perhaps nobody
