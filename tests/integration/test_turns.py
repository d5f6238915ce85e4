"""One real worker, a tenant with long jobs, and another with a small one: nobody waits for long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from store.states import JobStatus
from tests.integration.deployment import QUICK, deployed
from tests.integration.jobs import Desk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.timeout(900), pytest.mark.xdist_group("faults")]

LONG = {"epochs": 4}  # a few turns on any machine
SMALL = {"epochs": 1, "batch_size": 64}  # one step


def test_a_small_job_starts_within_a_turn_and_the_long_ones_end_the_same(tmp_path: Path):
    with deployed(tmp_path / "home", **QUICK, TURN_SECONDS="1") as deployment:
        deployment.run("migrate")
        big, small = Desk(deployment.environment), Desk(deployment.environment)
        deployment.start("worker")
        data = big.push(tmp_path)
        first, second = (big.submit(data, **LONG) for _ in range(2))
        deployment.wait_for(lambda: big.is_at(first, "training"), message="the long job")
        other = small.submit(small.push(tmp_path, rows=64), **SMALL)
        deployment.wait_for(
            lambda: small.job(other).started_at is not None, seconds=60, message="the small job"
        )
        assert big.is_finished(first) is None
        for desk, job in ((small, other), (big, first), (big, second)):
            done = deployment.wait_for(
                lambda desk=desk, job=job: desk.is_finished(job),
                seconds=300,
                message=f"end of {job}",
            )
            assert done.status is JobStatus.SUCCEEDED, done.error
        handed_back = big.job(first)
        assert (handed_back.attempt, handed_back.fence > 1) == (1, True)
        # The second one, which ran alone, shows what the first one had to become.
        assert big.hashes(first) == big.hashes(second)
        assert sorted(big.work_events(first), key=str) == sorted(big.work_events(second), key=str)
        for desk in (big, small):
            desk.close()
