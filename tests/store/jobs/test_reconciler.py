"""store.jobs.reconciler: dead workers' jobs go on, and lost tokens are replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.errors import NotFoundError
from store.jobs import reconciler
from store.jobs.actions import cancel, get_job, pause
from store.jobs.reconciler import (
    forget_old_records,
    renew_tokens,
    take_back_expired,
    take_back_from,
)
from store.states import JobStatus
from store.tables import IdempotencyRecord, Job, Worker
from tests.store.queues import WORKER, add_job, add_tenant, claim, claimed


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def expire(database: Database) -> None:
    with database.write() as session:
        past = database_now(session) - timedelta(seconds=1)
        session.execute(sa.update(Job).where(Job.lease_until.is_not(None)).values(lease_until=past))


def take_back(database: Database) -> int:
    """Reclaim the leases that have expired."""
    with database.read() as session:
        now = database_now(session)
    return take_back_expired(database, before=now)


def claimed_by(database: Database, worker_id: str) -> tuple[str, JobStatus]:
    """Return the one job that a worker has, and its state."""
    with database.read() as session:
        query = sa.select(Job.id, Job.status).where(Job.worker_id == worker_id)
        job_id, status = session.execute(query).one()
        return job_id, status


def load(database: Database, tenant: str, job_id: str) -> Job:
    with database.read() as session:
        return get_job(session, tenant, job_id)


class TestExpiredLeases:
    def test_a_living_workers_job_is_left_alone(self, database, tenant):
        add_job(database, tenant)
        job, _ = claimed(database)
        assert take_back(database) == 0
        assert load(database, tenant, job.id).status is JobStatus.VALIDATING

    def test_a_dead_ones_is_queued_again(self, database, tenant):
        add_job(database, tenant)
        job, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        expire(database)
        assert take_back(database) == 1
        row = load(database, tenant, job.id)
        assert (row.status, row.attempt, row.worker_id) == (JobStatus.QUEUED, 2, None)
        assert claimed(database)[0].fence == 2

    def test_after_three_tries_without_a_checkpoint_it_fails(self, database, tenant):
        add_job(database, tenant)
        for _ in range(reconciler.MAX_ATTEMPTS):
            job, _ = claimed(database)
            expire(database)
            take_back(database)
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
            take_back(database)
        assert claimed(database)[0].attempt == 2

    @pytest.mark.parametrize(
        ("ask", "status"), [(cancel, JobStatus.CANCELLED), (pause, JobStatus.PAUSED)]
    )
    def test_a_requested_stop_is_done(self, database, tenant, ask, status):
        add_job(database, tenant)
        job, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        with database.write() as session:
            ask(session, tenant, job.id)
        expire(database)
        take_back(database)
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


class TestOutages:
    def test_a_lease_that_ran_out_since_the_database_last_answered_is_left(self, database, tenant):
        add_job(database, tenant)
        claimed(database)
        with database.read() as session:
            before = database_now(session) - timedelta(seconds=5)
        expire(database)
        assert take_back_expired(database, before=before) == 0
        assert take_back(database) == 1


class TestDeletedJobs:
    def test_one_that_is_deleted_meanwhile_is_passed_over(self, database, tenant, monkeypatch):
        for _ in range(2):
            add_job(database, tenant)
            claimed(database)
        expire(database)
        lock_job, gone = reconciler.lock_job, iter([True, False])

        def lock(session, job_id):
            if next(gone):
                raise NotFoundError("job", job_id)
            return lock_job(session, job_id)

        monkeypatch.setattr(reconciler, "lock_job", lock)
        assert take_back(database) == 1


class TestDeadWorkers:
    def test_jobs_are_taken_back_before_their_leases_run_out(self, database, tenant):
        see_workers(database, 0, 0)
        for worker in ("w0", "w1"):
            add_job(database, tenant)
            claimed(database, claimant=replace(WORKER, worker_id=worker))
        job, _ = claimed_by(database, "w0")
        assert take_back_from(database, ["w0", "nobody"]) == 1
        row = load(database, tenant, job)
        assert (row.status, row.attempt, row.worker_id) == (JobStatus.QUEUED, 2, None)
        _, other = claimed_by(database, "w1")
        assert other is JobStatus.VALIDATING
        with database.read() as session:
            assert list(session.scalars(sa.select(Worker.id))) == ["w1"]
        assert take_back(database) == 0

    def test_a_requested_stop_is_done(self, database, tenant):
        add_job(database, tenant)
        job, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        with database.write() as session:
            cancel(session, tenant, job.id)
        assert take_back_from(database, [WORKER.worker_id]) == 1
        assert load(database, tenant, job.id).status is JobStatus.CANCELLED


class TestTokens:
    def test_a_fresh_one_is_waited_for(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        assert renew_tokens(database) == 0

    def test_a_lost_one_is_replaced_once(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        age_tokens(database)
        assert [renew_tokens(database) for _ in range(2)] == [1, 0]

    def test_each_idle_worker_gets_one_for_it_may_be_the_one_with_the_backbone(
        self, database, tenant
    ):
        see_workers(database, 0, 1, 2, 999)
        for _ in range(2):
            add_job(database, tenant)
        claimed(database, claimant=replace(WORKER, worker_id="w0"))
        age_tokens(database)
        assert [renew_tokens(database) for _ in range(2)] == [2, 0]

    def test_a_dead_workers_job_keeps_no_living_one_busy(self, database, tenant):
        see_workers(database, 0, 999)
        for _ in range(2):
            add_job(database, tenant)
        claimed(database, claimant=replace(WORKER, worker_id="w1"))
        age_tokens(database)
        assert renew_tokens(database) == 1

    def test_a_job_taken_back_gets_one_at_once(self, database, tenant):
        see_workers(database, 0)
        add_job(database, tenant)
        claimed(database)
        expire(database)
        assert take_back(database) == 1
        assert renew_tokens(database) == 1


class TestRounds:
    def test_without_anything_to_do_lock_nothing(
        self, database, tenant, monkeypatch: pytest.MonkeyPatch
    ):
        see_workers(database, 0)
        for _ in range(2):
            add_job(database, tenant)
        claimed(database)

        def refuse(_: Database) -> None:
            raise AssertionError("a write transaction was opened")

        monkeypatch.setattr(Database, "write", refuse)
        assert take_back(database) == 0
        assert renew_tokens(database) == 0


class TestWorkers:
    def test_one_not_seen_for_a_day_is_forgotten(self, database):
        see_workers(database, 0, 23 * 3600, 25 * 3600)
        forget_old_records(database)
        with database.read() as session:
            assert sorted(session.scalars(sa.select(Worker.id))) == ["w0", "w1"]


class TestAlone:
    def test_several_at_once_take_a_job_back_once(self, database, tenant):
        add_job(database, tenant)
        job, _ = claimed(database)
        expire(database)
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: take_back(database), range(4)))
        assert sum(done) == 1
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
        forget_old_records(database)
        with database.read() as session:
            assert session.scalars(sa.select(IdempotencyRecord.key)).all() == ["23"]
