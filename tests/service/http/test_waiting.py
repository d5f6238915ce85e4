"""service.http.waiting: work ends with its caller, and blocks nobody else."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, cast

import pytest
from starlette.requests import ClientDisconnect

from service.http import waiting as module
from tests.waiting import patience

if TYPE_CHECKING:
    from starlette.requests import Request


class Leaving:
    """A request whose caller goes while the answer comes in."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()

    async def is_disconnected(self) -> bool:
        self.is_asked.set()
        await asyncio.sleep(0.01)
        return True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HANG_UP_SECONDS", 0.01)


class TestWhileConnected:
    def test_work_that_ends_as_the_caller_goes_is_given_and_not_lost(self):
        async def run() -> str:
            leaving = Leaving()

            async def work() -> str:
                await leaving.is_asked.wait()
                return "a body that somebody has to close"

            return await module.while_connected(cast("Request", leaving), work())

        assert asyncio.run(run()) == "a body that somebody has to close"

    def test_work_that_goes_on_is_cancelled(self):
        async def run() -> bool:
            cancelled = asyncio.Event()

            async def work() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    cancelled.set()

            with pytest.raises(ClientDisconnect):
                await module.while_connected(cast("Request", Leaving()), work())
            async with asyncio.timeout(patience(5)):
                return await cancelled.wait()

        assert asyncio.run(run())

    def test_its_error_is_the_callers(self):
        async def work() -> None:
            raise KeyError("x")

        async def run() -> None:
            await module.while_connected(cast("Request", Leaving()), work())

        with pytest.raises(KeyError):
            asyncio.run(run())


class TestAside:
    @pytest.mark.parametrize(("size", "is_here"), [(100, True), (16 << 20, False)])
    def test_what_takes_long_is_done_in_a_thread(self, size: int, is_here: bool):
        async def run() -> int:
            return await module.aside(threading.get_ident, size=size)

        assert (asyncio.run(run()) == threading.get_ident()) is is_here
