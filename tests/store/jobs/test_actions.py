"""store.jobs.actions: what a job's owner, and no other tenant, can do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.errors import IllegalTransitionError, NotFoundError, QuotaExceededError
from store.jobs import actions as jobs
from store.states import JobStatus
from store.storage import Blob
from store.tables import Artifact, JobEvent
from tests.store.queues import NEW, add_job, add_tenant, claim, claimed

if TYPE_CHECKING:
    from store.database.connection import Database


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def status(database: Database, tenant: str, job_id: str) -> JobStatus:
    with database.read() as session:
        return jobs.get_job(session, tenant, job_id).status


def cancel(database: Database, tenant: str, job_id: str) -> JobStatus:
    """Cancel a job; return its status."""
    with database.write() as session:
        jobs.cancel(session, tenant, job_id)
    return status(database, tenant, job_id)


class TestSubmit:
    def test_queues_with_an_event(self, database, tenant):
        job_id = add_job(database, tenant, name="mrpc", meta={"team": "search"})
        with database.read() as session:
            job = jobs.get_job(session, tenant, job_id)
            (event,), has_more = jobs.list_events(session, job, limit=10)
        assert (job.status, job.name, job.meta) == ("queued", "mrpc", {"team": "search"})
        assert (event.number, event.type, event.data) == (1, "status", {"status": "queued"})
        assert not has_more

    def test_stops_at_the_quota_of_waiting_jobs(self, database):
        tenant = add_tenant(database, "b", max_queued=2)
        for _ in range(2):
            add_job(database, tenant)
        with pytest.raises(QuotaExceededError, match="max_queued is 2"):
            add_job(database, tenant)
        assert claim(database) is not None
        add_job(database, tenant)

    def test_for_an_unknown_tenant_is_refused(self, database):
        with pytest.raises(NotFoundError):
            add_job(database, "ten_none")


class TestCancel:
    def test_is_immediate_without_a_worker(self, database, tenant):
        assert cancel(database, tenant, add_job(database, tenant)) is JobStatus.CANCELLED

    def test_is_requested_of_the_worker(self, database, tenant):
        job_id = add_job(database, tenant)
        claimed(database)
        assert cancel(database, tenant, job_id) is JobStatus.CANCELLING

    def test_twice_is_refused(self, database, tenant):
        job_id = add_job(database, tenant)
        claimed(database)
        for _ in range(2):
            with database.write() as session:
                if status(database, tenant, job_id) is JobStatus.CANCELLING:
                    with pytest.raises(IllegalTransitionError, match="cancelling"):
                        jobs.cancel(session, tenant, job_id)
                else:
                    jobs.cancel(session, tenant, job_id)


class TestPause:
    def test_a_paused_job_waits_until_it_is_resumed(self, database, tenant):
        job_id = add_job(database, tenant)
        _, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        with database.write() as session:
            jobs.pause(session, tenant, job_id)
        lease.stop()
        assert claim(database) is None
        with database.write() as session:
            jobs.resume(session, tenant, job_id)
        assert claimed(database)[0].id == job_id

    @pytest.mark.parametrize("act", [jobs.pause, jobs.resume])
    def test_of_a_queued_job_is_refused(self, database, tenant, act: Callable):
        job_id = add_job(database, tenant)
        with database.write() as session, pytest.raises(IllegalTransitionError, match="queued"):
            act(session, tenant, job_id)


class TestDelete:
    def test_takes_events_and_artifacts_along(self, database, tenant):
        job_id = add_job(database, tenant)
        _, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        with database.write() as session, pytest.raises(IllegalTransitionError):
            jobs.delete(session, tenant, job_id)
        lease.succeed(result={}, artifacts={"int8": Blob(sha256="0" * 64, bytes=1)})
        with database.write() as session:
            jobs.delete(session, tenant, job_id)
        with database.read() as session:
            for table in (JobEvent, Artifact):
                assert session.scalars(sa.select(sa.func.count()).select_from(table)).one() == 0
            with pytest.raises(NotFoundError):
                jobs.get_job(session, tenant, job_id)


class TestOwner:
    @pytest.mark.parametrize(
        "act", [jobs.get_job, jobs.cancel, jobs.pause, jobs.resume, jobs.delete]
    )
    def test_another_tenants_job_is_not_there(self, database, tenant, act: Callable):
        job_id = add_job(database, tenant)
        other = add_tenant(database, "b")
        with database.write() as session, pytest.raises(NotFoundError) as theirs:
            act(session, other, job_id)
        with database.write() as session, pytest.raises(NotFoundError) as nobodys:
            act(session, other, "job_none")
        assert str(theirs.value).replace(job_id, "job_none") == str(nobodys.value)


class TestDeltas:
    def test_of_jobs_that_are_there_in_one_encoding(self, database, tenant):
        job_id = add_job(database, tenant)
        _, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        blobs = {name: Blob(sha256=name[0] * 64, bytes=1) for name in ("float32", "bfloat16")}
        lease.succeed(result={}, artifacts=blobs)
        waiting = add_job(database, tenant)
        theirs = add_job(database, add_tenant(database, "b"))
        with database.read() as session:
            found = {
                delta.job_id: (delta.status, delta.model, delta.sha256)
                for delta in jobs.find_deltas(
                    session, tenant, [job_id, waiting, theirs, "job_none"], encoding="float32"
                )
            }
        assert found == {
            job_id: (JobStatus.SUCCEEDED, NEW.model, "f" * 64),
            waiting: (JobStatus.QUEUED, NEW.model, None),
        }


class TestPages:
    def test_go_from_newest_to_oldest_without_gap(self, database, tenant):
        made = [add_job(database, tenant) for _ in range(7)]
        add_job(database, add_tenant(database, "b"))
        seen: list[str] = []
        after, more = None, True
        while more:
            with database.read() as session:
                page = jobs.list_jobs(session, tenant, status=None, after=after, limit=3)
            seen += [job.id for job in page.rows]
            after, more = seen[-1], page.has_more
        assert seen == made[::-1]

    def test_of_one_state(self, database, tenant):
        made = [add_job(database, tenant) for _ in range(3)]
        claimed(database)
        with database.read() as session:
            page = jobs.list_jobs(session, tenant, status=JobStatus.QUEUED, after=None, limit=9)
        assert [job.id for job in page.rows] == made[:0:-1]

    def test_of_events_go_on_after_a_number(self, database, tenant):
        job_id = add_job(database, tenant)
        claimed(database)
        with database.read() as session:
            job = jobs.get_job(session, tenant, job_id)
            first, more = jobs.list_events(session, job, limit=1)
            rest, no_more = jobs.list_events(session, job, after=first[0].number, limit=9)
        assert more
        assert not no_more
        assert [event.number for event in (*first, *rest)] == [1, 2]
