"""store.storage.breaker: what fails again and again is refused at once for a while."""

from __future__ import annotations

import pytest

from store.errors import ArtifactStorageError, BlobLostError
from store.storage.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, *, times: int = 1, tenant: str = "a") -> None:
    for _ in range(times):
        with pytest.raises(ArtifactStorageError, match="away"), breaker.watch(tenant):
            raise ArtifactStorageError("away")


def is_refused(breaker: Breaker, tenant: str = "a") -> bool:
    try:
        with breaker.watch(tenant):
            return False
    except ArtifactStorageError:
        return True


class TestBreaker:
    def test_refuses_after_failures_in_a_row(self):
        breaker = Breaker(Clock())
        fail(breaker, times=2)
        assert not is_refused(breaker)  # which succeeds, and counting starts again
        fail(breaker, times=3)
        assert is_refused(breaker)

    def test_refuses_only_the_tenant_whose_calls_fail(self):
        breaker = Breaker(Clock())
        fail(breaker, times=3)
        assert not is_refused(breaker, "b")

    def test_lets_one_call_try_after_a_pause(self):
        clock = Clock()
        breaker = Breaker(clock)
        fail(breaker, times=3)
        clock.now += 5
        trial = breaker.watch("a")
        trial.__enter__()
        assert is_refused(breaker)
        error = ArtifactStorageError("still away")
        assert not trial.__exit__(type(error), error, None)  # which is raised then
        clock.now += 4
        with pytest.raises(ArtifactStorageError, match="4 times in a row; retry in 1 s"):
            breaker.watch("a").__enter__()
        clock.now += 1
        assert not is_refused(breaker)
        assert not is_refused(breaker)

    def test_a_lost_blob_is_an_answer(self):
        breaker = Breaker(Clock())
        for _ in range(5):
            fail(breaker, times=2)
            with pytest.raises(BlobLostError), breaker.watch("a"):
                raise BlobLostError("gone")
        assert not is_refused(breaker)
