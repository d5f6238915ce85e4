"""store.waiting: work ends with its caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from store.waiting import CallerLeftError, while_connected


class Leaving:
    """A caller who disconnects after the whole request, before the answer."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()
        self._messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        self.has_left.set()
        return {"type": "http.disconnect"}


async def stay() -> dict[str, Any]:
    """Block forever: the caller waits for the answer."""
    await asyncio.sleep(60)
    raise AssertionError("unreachable")


class TestWhileConnected:
    def test_returns_what_the_work_returns(self):
        async def work() -> str:
            return "done"

        assert asyncio.run(while_connected(stay, work())) == "done"

    def test_work_that_ends_as_the_caller_goes_is_given_and_not_lost(self):
        async def run() -> str:
            leaving = Leaving()

            async def work() -> str:
                await leaving.has_left.wait()
                return "a body that somebody has to close"

            return await while_connected(leaving.receive, work())

        assert asyncio.run(run()) == "a body that somebody has to close"

    def test_work_that_is_cancelled_has_ended_afterwards(self):
        async def run() -> list[str]:
            ended: list[str] = []

            async def work() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0.01)  # such as the end of a process
                    ended.append("work")

            with pytest.raises(CallerLeftError):
                await while_connected(Leaving().receive, work())
            return ended

        assert asyncio.run(run()) == ["work"]

    def test_work_that_goes_on_is_cancelled(self):
        async def run() -> bool:
            cancelled = asyncio.Event()

            async def work() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    cancelled.set()

            with pytest.raises(CallerLeftError):
                await while_connected(Leaving().receive, work())
            async with asyncio.timeout(5):
                return await cancelled.wait()

        assert asyncio.run(run())

    def test_its_error_is_the_callers(self):
        async def work() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            asyncio.run(while_connected(stay, work()))

    def test_an_error_of_receiving_is_the_callers(self):
        async def fail() -> dict[str, Any]:
            raise KeyError("x")

        with pytest.raises(KeyError):
            asyncio.run(while_connected(fail, asyncio.sleep(60)))
