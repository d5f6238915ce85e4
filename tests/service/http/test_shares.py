"""service.http.shares: no tenant holds more than its share, and shares are returned."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest

from service.http.shares import LateRefusals, OneEach, Share
from store.errors import ProblemError


@pytest.fixture
def share():
    return Share(2, code="too_many_things", what="things")


class TestShare:
    def test_one_more_is_refused_with_the_limit(self, share):
        with share.hold("ten_a"), share.hold("ten_a"):
            with pytest.raises(ProblemError, match="2 open things") as raised, share.hold("ten_a"):
                raise AssertionError("it was held")
            assert (raised.value.status, raised.value.code) == (429, "too_many_things")

    def test_is_every_tenants_own(self, share):
        with share.hold("ten_a"), share.hold("ten_a"), share.hold("ten_b"):
            pass

    def test_a_released_share_may_be_held_again(self, share):
        for _ in range(5):
            with share.hold("ten_a"), share.hold("ten_a"):
                pass

    def test_is_given_back_after_an_error_and_not_by_a_refusal(self, share):
        with pytest.raises(KeyError), share.hold("ten_a"):
            raise KeyError
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(share.hold("ten_a"))
            for _ in range(3):
                with pytest.raises(ProblemError), share.hold("ten_a"):
                    raise AssertionError("it was held")

    def test_tenants_that_hold_nothing_are_forgotten(self, share):
        for number in range(100):
            with share.hold(f"ten_{number}"):
                pass
        assert not share._held


class TestLateRefusals:
    KEY = ("ten_a", "/jobs/job_1/predict")
    BUSY = ProblemError(
        "too_many_requests", status=429, detail="no room", headers={"Retry-After": "17"}
    )

    @pytest.fixture
    def now(self):
        return [100.0]

    @pytest.fixture
    def refusals(self, now):
        return LateRefusals(clock=lambda: now[0])

    def refuse(self, refusals: LateRefusals, problem: ProblemError, *, size: int = 1000) -> None:
        with pytest.raises(ProblemError) as raised, refusals.hold(self.KEY, size=size):
            raise problem
        assert raised.value is problem

    def is_read(self, refusals: LateRefusals, key: tuple[str, str] = KEY, *, size: int) -> bool:
        with suppress(ProblemError), refusals.hold(key, size=size):
            return True
        return False

    def test_one_that_is_as_large_is_refused_at_once(self, refusals):
        self.refuse(refusals, self.BUSY)
        assert self.is_read(refusals, size=999)
        for size in (1000, 5000):
            with pytest.raises(ProblemError) as raised, refusals.hold(self.KEY, size=size):
                raise AssertionError("it was read")
            assert raised.value.status == 429
            assert (raised.value.code, raised.value.detail) == (self.BUSY.code, self.BUSY.detail)
            assert raised.value.headers == {"Retry-After": "17"}

    def test_a_larger_one_that_was_under_way_allows_no_smaller_one(self, refusals):
        def refuse_both() -> None:
            with refusals.hold(self.KEY, size=5000):
                self.refuse(refusals, self.BUSY, size=1000)
                raise self.BUSY

        with pytest.raises(ProblemError):
            refuse_both()
        assert not self.is_read(refusals, size=1000)

    def test_only_for_a_second_however_many_are_refused(self, refusals, now):
        self.refuse(refusals, self.BUSY)
        now[0] += 0.9
        assert not self.is_read(refusals, size=1000)
        now[0] += 0.2
        assert self.is_read(refusals, size=1000)

    @pytest.mark.parametrize("key", [("ten_b", KEY[1]), ("ten_a", "/predict")])
    def test_others_are_read(self, refusals, key):
        self.refuse(refusals, self.BUSY)
        assert self.is_read(refusals, key, size=1000)

    def test_other_problems_are_not_remembered(self, refusals):
        self.refuse(refusals, ProblemError("not_ready", status=409, detail="not ready"))
        assert self.is_read(refusals, size=1000)

    def test_are_forgotten(self, refusals, now):
        for number in range(100):
            now[0] += 2
            with pytest.raises(ProblemError), refusals.hold(number, size=1):
                raise self.BUSY
        assert len(refusals._refused) == 1


class TestOneEach:
    def test_a_tenants_requests_wait_for_each_other_and_for_no_one_elses(self):
        running: list[str] = []
        seen: list[list[str]] = []

        async def work(turns: OneEach, tenant: str) -> None:
            async with turns.hold(tenant):
                running.append(tenant)
                seen.append(sorted(running))
                await asyncio.sleep(0.01)
                running.remove(tenant)

        async def look() -> None:
            turns = OneEach()
            await asyncio.gather(*(work(turns, tenant) for tenant in "aabba"))
            assert not turns._locks

        asyncio.run(look())
        assert ["a", "b"] in seen
        assert all(len(set(names)) == len(names) for names in seen)
