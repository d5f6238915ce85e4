"""store.administration.removal: a tenant goes with all that it owns, and nothing else does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.administration.keys import authenticate, create_key
from store.administration.removal import delete_tenant, remove_deleted
from store.errors import NotFoundError
from store.jobs.actions import get_job, list_all_jobs, list_events
from store.jobs.life import lock_job, move
from store.states import JobStatus
from store.storage import ArtifactStorage, Blob
from store.storage.unnamed import remove_unnamed
from store.tables import Base, Job
from store.tenants import create_tenant, get_tenant, list_tenants, lock_tenant
from tests.store.queues import (
    add_job,
    add_split,
    add_tenant,
    claimed,
    wait_for_a_waiting_transaction,
)

if TYPE_CHECKING:
    from store.database.connection import Database

OWNED = ("jobs", "job_events", "datasets", "api_keys", "tenants")


def count_rows(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {
            name: session.scalar(sa.select(sa.func.count()).select_from(Base.metadata.tables[name]))
            for name in OWNED
        }


def fill(database: Database, name: str) -> str:
    """Add a tenant with one of each; return its id."""
    tenant = add_tenant(database, name)
    add_split(database, tenant, Blob(sha256="0" * 64, bytes=9))
    with database.write() as session:
        create_key(session, tenant)
    return tenant


def delete(database: Database, tenant: str) -> None:
    with database.write() as session:
        delete_tenant(session, tenant)


class TestDelete:
    def test_takes_all_that_it_owns_and_nothing_else(self, database: Database):
        mine, other = fill(database, "a"), fill(database, "b")
        add_job(database, other)
        before = count_rows(database)
        add_job(database, mine)
        delete(database, mine)
        assert remove_deleted(database) == 1
        after = count_rows(database)
        assert after == {**before, "datasets": 1, "api_keys": 1, "tenants": 1}
        assert remove_deleted(database) == 0

    def test_is_complete_for_callers_at_once(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            _, secret = create_key(session, tenant)
        delete(database, tenant)
        with database.read() as session:
            assert authenticate(session, secret) is None
            assert not list_tenants(session, after=None, limit=9).rows
            for load in (get_tenant, lock_tenant):
                with pytest.raises(NotFoundError):
                    load(session, tenant)
        with database.write() as session:
            assert create_tenant(session, "a").id != tenant  # the name is free

    def test_waits_for_running_jobs_and_cancels_them(self, database: Database):
        tenant = add_tenant(database, "a")
        running, queued = add_job(database, tenant), add_job(database, tenant)
        job, lease = claimed(database)
        assert job.id == running
        delete(database, tenant)
        assert remove_deleted(database) == 0
        with database.read() as session:
            status = dict(session.execute(sa.select(Job.id, Job.status)).all())
        assert status == {running: JobStatus.CANCELLING, queued: JobStatus.CANCELLED}
        lease.stop()
        assert remove_deleted(database) == 1
        assert not any(count_rows(database).values())

    def test_names_an_administrator_in_the_jobs_events(self, database: Database):
        tenant = add_tenant(database, "a")
        running, queued = add_job(database, tenant), add_job(database, tenant)
        claimed(database)
        delete(database, tenant)
        for job, message in (
            (running, "cancellation requested by an administrator"),
            (queued, "cancelled by an administrator"),
        ):
            with database.read() as session:
                events, _ = list_events(session, get_job(session, tenant, job), limit=9)
            assert events[-1].message == message

    def test_waits_for_a_job_that_is_just_ending(self, database: Database):
        tenant = add_tenant(database, "a")
        job_id = add_job(database, tenant)
        with ThreadPoolExecutor(1) as pool:
            with database.write() as session:
                job = lock_job(session, job_id)
                deleting = pool.submit(delete, database, tenant)
                wait_for_a_waiting_transaction(database)
                move(session, job, JobStatus.CANCELLED, message="by its owner")
            deleting.result()
        assert remove_deleted(database) == 1

    def test_of_an_unknown_tenant_is_refused(self, database: Database):
        with database.write() as session, pytest.raises(NotFoundError):
            delete_tenant(session, "ten_none")

    def test_keeps_the_places_of_listed_rows(self, database: Database):
        """Administrators may be paging through jobs and tenants meanwhile."""
        first, second = add_tenant(database, "a"), add_tenant(database, "b")
        older, job = add_job(database, first), add_job(database, second)
        delete(database, second)
        remove_deleted(database)
        with database.read() as session:
            assert [each.id for each in list_tenants(session, after=second, limit=9).rows] == [
                first
            ]
            page = list_all_jobs(session, tenant_id=None, status=None, after=job, limit=9)
            assert [each.id for each in page.rows] == [older]

    def test_frees_its_blobs_within_the_next_round(self, database: Database, tmp_path):
        storage = ArtifactStorage(str(tmp_path / "store"))
        tenant = add_tenant(database, "a")
        file = tmp_path / "file"
        file.write_bytes(b"x" * 9)
        add_split(database, tenant, storage.put(tenant, file))
        delete(database, tenant)
        remove_deleted(database)
        assert [blob.tenant_id for blob in storage.list()] == [tenant]
        assert remove_unnamed(database, storage) == 1
        assert list(storage.list()) == []
