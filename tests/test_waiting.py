"""tests.waiting: limits grow with the load, and what does not come in time fails."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.waiting import eventually, eventually_async, patience, within


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Set the load: ready processes per core."""

    def set_load(a_core: float) -> None:
        average = a_core * (os.cpu_count() or 1)
        monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))

    return set_load


class TestPatience:
    @pytest.mark.parametrize(("a_core", "seconds"), [(0.0, 10.0), (1.0, 20.0), (4.0, 50.0)])
    def test_grows_with_the_load(self, load, a_core: float, seconds: float):
        load(a_core)
        assert patience(10.0) == seconds


class TestEventually:
    def test_returns_what_the_condition_returned_at_last(self):
        answers = iter([None, 0, "there"])
        assert eventually(lambda: next(answers)) == "there"

    def test_fails_with_what_was_waited_for(self, load):
        load(0.0)
        with pytest.raises(AssertionError, match="the end of time: not within"):
            eventually(lambda: False, seconds=0.02, message="the end of time")

    def test_does_not_block_an_event_loop(self, load):
        load(0.0)

        async def run() -> bool:
            done = asyncio.Event()
            asyncio.get_running_loop().call_later(0.02, done.set)
            return await eventually_async(done.is_set)

        assert asyncio.run(run())
        with pytest.raises(AssertionError, match="not within"):
            asyncio.run(eventually_async(lambda: False, seconds=0.02))


class TestWithin:
    def test_fails_what_takes_longer(self, load):
        load(0.0)
        with within(60):
            pass
        with pytest.raises(AssertionError, match="not within"), within(0):
            pass
