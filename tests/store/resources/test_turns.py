"""store.resources.turns: a few threads, tenants in turn, and no turn lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from store.resources.turns import FairPool, SingleFlight, Turns
from tests.waiting import eventually_async, patience


class Desk:
    """A pool whose jobs record their tenant and wait for a gate."""

    def __init__(self, threads: int) -> None:
        self.pool = FairPool(threads, most_each=threads, spare=0, name="test")
        self.gate = threading.Event()
        self.done: list[str] = []
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def ask(self, tenant: str) -> asyncio.Task[str]:
        return asyncio.create_task(self.pool.run(lambda: self._work(tenant), tenant=tenant))

    def _work(self, tenant: str) -> str:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.done.append(tenant)
        assert self.gate.wait(patience(30))
        with self._lock:
            self._running -= 1
        return tenant


def run(work: Callable[[Desk], Awaitable[None]], *, threads: int = 1) -> Desk:
    desk = Desk(threads)

    async def whole() -> None:
        try:
            await work(desk)
        finally:
            desk.gate.set()
            desk.pool.close()

    asyncio.run(whole())
    return desk


class TestFairPool:
    def test_tenants_take_turns(self):
        async def work(desk: Desk) -> None:
            tasks = [desk.ask("a") for _ in range(50)]
            await eventually_async(lambda: desk.done)
            tasks += [desk.ask(tenant) for tenant in "bcb"]
            await asyncio.sleep(0)
            desk.gate.set()
            assert await asyncio.gather(*tasks) == ["a"] * 50 + list("bcb")

        desk = run(work)
        assert desk.done[:6] == ["a", "a", "b", "c", "a", "b"]

    @pytest.mark.parametrize("threads", [1, 3])
    def test_uses_so_many_threads(self, threads: int):
        async def work(desk: Desk) -> None:
            tasks = [desk.ask("a") for _ in range(20)]
            await eventually_async(lambda: len(desk.done) == threads)
            desk.gate.set()
            await asyncio.gather(*tasks)

        assert run(work, threads=threads).most == threads

    def test_a_thread_is_busy_until_its_work_is_done(self):
        async def work(desk: Desk) -> None:
            first = desk.ask("a")
            await eventually_async(lambda: desk.done)
            first.cancel()
            second = desk.ask("b")
            await asyncio.wait([first, second], timeout=0.1)
            assert first.cancelled()
            assert desk.done == ["a"]
            desk.gate.set()
            assert await second == "b"

        run(work)

    def test_a_cancelled_caller_loses_no_turn(self):
        async def work(desk: Desk) -> None:
            tasks = [desk.ask("a"), *(desk.ask(tenant) for tenant in "bcbcd")]
            await eventually_async(lambda: desk.done)
            for task in tasks[1:4]:
                task.cancel()
            desk.gate.set()
            await asyncio.wait(tasks)
            assert desk.done in (["a", "c", "d"], ["a", "d", "c"])
            assert not desk.pool._turns._waiting
            await eventually_async(lambda: desk.pool._turns._free == 1)

        run(work)

    def test_a_caller_cancelled_at_its_turn_loses_no_turn(self):
        async def work(desk: Desk) -> None:
            desk.gate.set()
            first = desk.ask("a")
            second, third = desk.ask("b"), desk.ask("c")
            await asyncio.sleep(0)
            turn = desk.pool._turns._waiting["b"][0]
            turn.add_done_callback(lambda _: second.cancel())
            await asyncio.wait([first, second, third])
            assert second.cancelled()
            assert third.result() == "c"
            await eventually_async(lambda: desk.pool._turns._free == 1)

        run(work)

    def test_a_failure_is_raised_and_frees_its_thread(self):
        async def work(desk: Desk) -> None:
            def fail() -> None:
                raise ValueError("no")

            for _ in range(3):
                with pytest.raises(ValueError, match="no"):
                    await desk.pool.run(fail, tenant="a")

        run(work)


class TestTurns:
    def test_a_tenant_leaves_turns_for_others(self):
        async def work() -> None:
            turns, had = Turns(3, most_each=2, spare=0), []

            async def hold(tenant: str, gate: asyncio.Event) -> None:
                async with turns.hold(tenant):
                    had.append(tenant)
                    await gate.wait()

            gate = asyncio.Event()
            tasks = [asyncio.create_task(hold("a", gate)) for _ in range(5)]
            await asyncio.sleep(0)
            assert had == ["a", "a"]  # though one is free
            tasks.append(asyncio.create_task(hold("b", gate)))
            await asyncio.sleep(0)
            assert had == ["a", "a", "b"]
            gate.set()
            await asyncio.gather(*tasks)
            assert had == ["a", "a", "b", "a", "a", "a"]
            assert (turns._free, dict(turns._held), turns._waiting) == (3, {}, {})

        asyncio.run(work())

    def test_the_last_turns_are_for_tenants_without_one(self):
        async def work() -> None:
            turns = Turns(8, most_each=3, spare=3)
            greedy = [
                asyncio.create_task(turns.take(tenant)) for tenant in "abcd" for _ in range(9)
            ]
            await asyncio.sleep(0)
            taken = dict(turns._held)
            assert sum(taken.values()) < 8
            assert min(taken.values()) == 1  # each of them had its first
            await asyncio.wait_for(turns.take("e"), patience(1))
            for task in greedy:
                task.cancel()
            await asyncio.wait(greedy)
            assert not turns._waiting

        asyncio.run(work())

    def test_cancelled_tenants_are_forgotten(self):
        async def work() -> None:
            turns = Turns(1, most_each=1, spare=0)
            await turns.take("a")
            for number in range(100):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(turns.take(f"ten_{number % 7}"), 0.001)
            assert not turns._waiting

        asyncio.run(work())

    def test_a_cancelled_caller_gets_no_turn(self):
        async def work() -> None:
            turns = Turns(1, most_each=1, spare=0)
            await turns.take("a")
            second, third = (asyncio.create_task(turns.take(tenant)) for tenant in "bc")
            await asyncio.sleep(0)
            second.cancel()
            turns.give_back("a")
            await asyncio.wait([second, third])
            assert second.cancelled()
            assert third.exception() is None
            turns.give_back("c")
            assert turns._free == 1

        asyncio.run(work())


class TestSingleFlight:
    def test_runs_once_for_many_callers(self):
        async def work() -> None:
            flight: SingleFlight[str, int] = SingleFlight()
            begun, gate = [], asyncio.Event()

            async def fly() -> int:
                begun.append(1)
                await gate.wait()
                return len(begun)

            first, *others = [asyncio.create_task(flight.join("a", fly)) for _ in range(5)]
            other = asyncio.create_task(flight.join("b", fly))
            await asyncio.sleep(0.01)
            first.cancel()  # it goes on
            gate.set()
            assert await asyncio.gather(*others, other) == [2] * 5
            assert len(begun) == 2
            assert await flight.join("a", fly) == 3  # it is not kept
            assert not flight._tasks

        asyncio.run(work())

    def test_raises_a_failure_to_all_callers(self):
        async def work() -> None:
            flight: SingleFlight[str, None] = SingleFlight()

            async def fail() -> None:
                raise KeyError("no")

            tasks = [asyncio.create_task(flight.join("a", fail)) for _ in range(3)]
            await asyncio.wait(tasks)
            assert all(isinstance(task.exception(), KeyError) for task in tasks)

        asyncio.run(work())


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("test_"):
            thread.join(patience(10))
            assert not thread.is_alive()
