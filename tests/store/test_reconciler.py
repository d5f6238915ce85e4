"""store.reconciler: dead workers' jobs go on, and lost tokens are replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from store import reconciler
from store.database import Database, database_now
from store.jobs import cancel, get_job, pause
from store.reconciler import Reconciled, reconcile
from store.states import JobStatus
from store.tables import IdempotencyRecord, Job, Worker
from tests.store.queues import add_job, add_tenant, claim, claimed


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def expire(database: Database) -> None:
    with database.write() as session:
        past = database_now(session) - timedelta(seconds=1)
        session.execute(sa.update(Job).where(Job.lease_until.is_not(None)).values(lease_until=past))


def load(database: Database, tenant: str, job_id: str) -> Job:
    with database.read() as session:
        return get_job(session, tenant, job_id)


class TestExpiredLeases:
    def test_a_living_workers_job_is_left_alone(self, database, tenant):
        add_job(database, tenant)
        job, _ = claimed(database)
        assert reconcile(database, live_seconds=60) == Reconciled()
        assert load(database, tenant, job.id).status is JobStatus.VALIDATING

    def test_a_dead_ones_is_queued_again(self, database, tenant):
        add_job(database, tenant)
        job, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        expire(database)
        assert reconcile(database, live_seconds=60).taken_back == 1
        row = load(database, tenant, job.id)
        assert (row.status, row.attempt, row.worker_id) == (JobStatus.QUEUED, 2, None)
        assert claimed(database)[0].fence == 2

    def test_after_three_tries_without_a_checkpoint_it_fails(self, database, tenant):
        add_job(database, tenant)
        for _ in range(reconciler.MAX_ATTEMPTS):
            job, _ = claimed(database)
            expire(database)
            reconcile(database, live_seconds=60)
        row = load(database, tenant, job.id)
        assert row.status is JobStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "worker_lost"
        assert claim(database) is None

    def test_a_newer_checkpoint_gives_new_tries(self, database, tenant):
        add_job(database, tenant)
        for step in range(5):
            _, lease = claimed(database)
            lease.keep_checkpoint(step=step, files={})
            expire(database)
            reconcile(database, live_seconds=60)
        assert claimed(database)[0].attempt == 2

    @pytest.mark.parametrize(
        ("ask", "status"), [(cancel, JobStatus.CANCELLED), (pause, JobStatus.PAUSED)]
    )
    def test_what_was_asked_of_it_is_done(self, database, tenant, ask, status):
        add_job(database, tenant)
        job, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        with database.write() as session:
            ask(session, tenant, job.id)
        expire(database)
        reconcile(database, live_seconds=60)
        assert load(database, tenant, job.id).status is status


def see_workers(database: Database, *ages: float) -> None:
    with database.write() as session:
        now = database_now(session)
        for number, age in enumerate(ages):
            seen = now - timedelta(seconds=age)
            session.add(
                Worker(
                    id=f"w{number}",
                    device="cpu",
                    backbones=["minilm"],
                    allows_hub=False,
                    started_at=seen,
                    seen_at=seen,
                )
            )


def age_tokens(database: Database) -> None:
    with database.write() as session:
        session.execute(
            sa.update(Job).values(token_at=database_now(session) - timedelta(minutes=1))
        )


class TestTokens:
    def test_a_fresh_one_is_waited_for(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        assert reconcile(database, live_seconds=60).tokens == 0

    def test_a_lost_one_is_replaced_once(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        age_tokens(database)
        assert [reconcile(database, live_seconds=60).tokens for _ in range(2)] == [1, 0]

    def test_no_more_than_idle_workers(self, database, tenant):
        see_workers(database, 0, 1, 2, 999)
        for _ in range(5):
            add_job(database, tenant)
        claimed(database)
        age_tokens(database)
        assert reconcile(database, live_seconds=60).tokens == 2

    def test_a_job_taken_back_gets_one_at_once(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        claimed(database)
        expire(database)
        assert reconcile(database, live_seconds=60) == Reconciled(taken_back=1, tokens=1)


class TestWorkers:
    def test_one_not_seen_for_a_day_is_forgotten(self, database):
        see_workers(database, 0, 23 * 3600, 25 * 3600)
        reconcile(database, live_seconds=60)
        with database.read() as session:
            assert sorted(session.scalars(sa.select(Worker.id))) == ["w0", "w1"]


class TestAlone:
    def test_several_at_once_take_a_job_back_once(self, database, tenant):
        add_job(database, tenant)
        job, _ = claimed(database)
        expire(database)
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: reconcile(database, live_seconds=60), range(4)))
        assert sum(each.taken_back for each in done) == 1
        assert load(database, tenant, job.id).attempt == 2


class TestRecords:
    def test_old_ones_go(self, database, tenant):
        with database.write() as session:
            now = database_now(session)
            for hours in (23, 25):
                session.add(
                    IdempotencyRecord(
                        tenant_id=tenant,
                        method="POST",
                        path="/jobs",
                        key=f"{hours}",
                        request_sha256="",
                        locked_until=now,
                        created_at=now - timedelta(hours=hours),
                    )
                )
        reconcile(database, live_seconds=60)
        with database.read() as session:
            assert session.scalars(sa.select(IdempotencyRecord.key)).all() == ["23"]
