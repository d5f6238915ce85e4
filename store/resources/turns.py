"""Fair sharing of scarce places between tenants, and work that is done once for all callers."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from http import HTTPStatus
from typing import Generic, TypeVar

from store.errors import ProblemError

_Key = TypeVar("_Key", bound=Hashable)
_Done = TypeVar("_Done")
_RETRY_SECONDS = "1"


class Turns:
    """A semaphore with a limited number of turns, for which tenants wait round-robin.

    A tenant's first turn waits for at most one turn of each other tenant, however many they want.
    Used on one event loop.

    Args:
        most: turns at a time.
        most_each: turns of one tenant, so that hanging work of one leaves room for the others.
        spare: turns reserved for tenants that hold none, so that hanging work of a few does too.
    """

    def __init__(self, most: int, *, most_each: int, spare: int) -> None:
        self._free = most
        self._most_each = most_each
        self._spare = spare
        self._held: Counter[str] = Counter()
        # The next tenant in turn comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator[None]:
        """Hold a turn during a block."""
        await self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)

    async def take(self, tenant: str) -> None:
        """Wait for a turn; hold it until :meth:`give_back`."""
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
            else:  # the turn was granted at the same moment
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Release a turn to the next waiting tenant."""
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:  # forget tenants that hold nothing
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
            self._waiting[tenant] = turns  # at the end of the line
        if not turn.done():  # a cancelled one is only removed
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


class Places:
    """Limits what is in flight, from its arrival to its answer. Used on one event loop.

    Args:
        most: of all tenants together. A tenant may hold as many as remain free for others: half of
            them if it is alone, a quarter next to a tenant with half. So a new tenant always finds
            free places.
        what: is in flight, in words.
    """

    def __init__(self, most: int, *, what: str) -> None:
        self._most = most
        self._what = what
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many are in flight."""
        return self._taken.total()

    @contextmanager
    def take(self, wanted: Mapping[str, int]) -> Iterator[None]:
        """Hold places during a block, as many as each tenant wants, all of them or none.

        Raises:
            ProblemError: 429 ``too_many_requests``.
        """
        free = self._most - len(self) - sum(wanted.values())
        if free < 0 or any(self._taken[name] + count > free for name, count in wanted.items()):
            raise ProblemError(
                "too_many_requests",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"too many {self._what}: {len(self)} of at most {self._most}, and a "
                f"tenant may hold only as many as remain free; retry in {_RETRY_SECONDS} s",
                headers={"Retry-After": _RETRY_SECONDS},
            )
        self._taken.update(wanted)
        try:
            yield
        finally:
            self._taken.subtract(wanted)
            self._taken += Counter()  # removes tenants without any


class FairPool:
    """Runs work in a few threads, which tenants get in turn. Used on one event loop.

    Args:
        threads: the number of threads.
        most_each: the most threads of one tenant.
        spare: threads reserved for tenants that use none.
        name: of the threads.
    """

    def __init__(self, threads: int, *, most_each: int, spare: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns = Turns(threads, most_each=most_each, spare=spare)

    async def run(self, work: Callable[[], _Done], *, tenant: str) -> _Done:
        """Run work in a thread; a cancelled caller does not free the thread early."""
        loop = asyncio.get_running_loop()
        await self._turns.take(tenant)

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(partial(self._turns.give_back, tenant))

        future = self._pool.submit(copy_context().run, work)  # the context has ids for the log
        future.add_done_callback(leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Start no further work; running work finishes by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class SingleFlight(Generic[_Key, _Done]):
    """Does work once for all callers that want it at the same time. Used on one event loop.

    The work continues if its callers are cancelled, since others may want its result.
    """

    def __init__(self) -> None:
        self._tasks: dict[_Key, asyncio.Task[_Done]] = {}

    async def join(self, key: _Key, work: Callable[[], Coroutine[None, None, _Done]]) -> _Done:
        """Wait for the work of a key; start it if it is not running."""
        task = self._tasks.get(key)
        if task is None or task.done():  # done but not removed yet
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(partial(self._end, key))
        return await asyncio.shield(task)

    def _end(self, key: _Key, task: asyncio.Task[_Done]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: perhaps no caller is left to see it
