"""store.jobs.telemetry: the metrics match the tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.jobs.claims import Claimant
from store.jobs.leases import Progress
from store.jobs.reconciler import take_back_expired
from store.jobs.telemetry import measure
from store.jobs.workers import register
from store.states import JobStatus
from store.tables import Job, JobEvent, Worker
from tests.store.queues import add_job, add_tenant, claim, claimed

if TYPE_CHECKING:
    from store.database.connection import Database


def test_of_an_empty_service_is_zero(database: Database):
    with database.read() as session:
        seen = measure(session)
    assert set(seen.jobs_by_state) == {str(status) for status in JobStatus}
    assert set(seen.jobs_by_state.values()) == {0}
    assert (seen.oldest_queued_seconds, seen.steps_per_second, seen.live_workers) == (0, 0, 0)
    assert seen.counters == {"lease_losses": 0, "engine_crashes": 0}


def test_counts_jobs_and_adds_up_their_speed(database: Database):
    tenant = add_tenant(database, "a")
    for _ in range(3):
        add_job(database, tenant)
    for _ in range(2):
        _, lease = claimed(database)
        lease.report(Progress(steps_per_second=1.5))
    with database.read() as session:
        seen = measure(session)
    assert (seen.jobs_by_state["queued"], seen.jobs_by_state["validating"]) == (1, 2)
    assert seen.steps_per_second == pytest.approx(3.0)
    assert 0 < seen.oldest_queued_seconds < 60


def test_counts_jobs_that_no_living_worker_can_run(database: Database):
    tenant = add_tenant(database, "a")
    kinds = [
        {"model": "minilm"},
        {"model": "llama"},
        {"model": "minilm", "needs_hub": True},
        {"model": "org/m", "revision": "c0ffee", "needs_hub": True},
    ]
    for kind in kinds:
        add_job(database, tenant, **kind)

    def without() -> int:
        with database.read() as session:
            return measure(session).jobs_without_worker

    assert without() == 4
    register(database, worker_id="w1", device="cpu", backbones=["minilm"], allows_hub=False)
    assert without() == 3
    register(database, worker_id="w2", device="cpu", backbones=["minilm"], allows_hub=True)
    assert without() == 1
    claimant = Claimant(worker_id="w2", backbones=frozenset({"minilm"}), allows_hub=True)
    taken = {claimed(database, claimant=claimant)[0].model for _ in range(3)}
    assert taken == {"minilm", "org/m"}  # as it was counted, so it is claimed
    assert claim(database, claimant) is None
    with database.write() as session:
        session.execute(sa.update(Worker).values(seen_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert without() == 1


def test_a_job_waits_from_when_it_was_queued_again(database: Database):
    tenant = add_tenant(database, "a")
    job_id = add_job(database, tenant)
    _, lease = claimed(database)
    lease.report(Progress(steps_per_second=1.5))
    with database.write() as session:
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        session.execute(sa.update(Job).where(Job.id == job_id).values(created_at=long_ago))
        session.execute(sa.update(JobEvent).values(created_at=long_ago))
    lease.hand_back(message="")
    with database.read() as session:
        seen = measure(session)
    assert 0 < seen.oldest_queued_seconds < 60
    assert seen.steps_per_second == 0


def test_counts_lost_leases_and_crashes(database: Database):
    tenant = add_tenant(database, "a")
    for _ in range(2):
        add_job(database, tenant)
    _, first = claimed(database)
    assert first.count_crash(code="engine_crashed", message="") is JobStatus.VALIDATING
    assert first.count_crash(code="engine_crashed", message="") is JobStatus.VALIDATING
    claimed(database)
    with database.write() as session:
        session.execute(sa.update(Job).values(lease_until=datetime(2020, 1, 1, tzinfo=UTC)))
    take_back_expired(database, before=datetime.now(UTC))
    with database.read() as session:
        assert measure(session).counters == {"lease_losses": 2, "engine_crashes": 2}
