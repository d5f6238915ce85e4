"""store.database.pages: a list goes on where it was, whatever became of its rows meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.database import pages
from store.database.connection import database_now
from store.datasets import delete_dataset, list_datasets
from store.errors import NotFoundError
from store.jobs.actions import cancel, delete, list_all_jobs, list_jobs
from store.jobs.reconciler import forget_old_records
from store.states import JobStatus
from store.storage import Blob
from store.tables import Dataset, DeletedRow
from tests.store.queues import add_job, add_split, add_tenant

if TYPE_CHECKING:
    from store.database.connection import Database

QUEUED = JobStatus.QUEUED


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def page(database: Database, tenant: str, *, after: str | None, status=None, limit=9) -> list[str]:
    with database.read() as session:
        found = list_jobs(session, tenant, status=status, after=after, limit=limit)
    return [job.id for job in found.rows]


def remove(database: Database, tenant: str, job: str) -> None:
    with database.write() as session:
        cancel(session, tenant, job)
    with database.write() as session:
        delete(session, tenant, job)


class TestJobs:
    def test_go_on_after_one_that_was_deleted(self, database: Database, tenant: str):
        oldest, middle, last, _ = (add_job(database, tenant) for _ in range(4))
        remove(database, tenant, last)
        assert page(database, tenant, after=last) == [middle, oldest]

    def test_go_on_after_one_that_left_the_filter(self, database: Database, tenant: str):
        oldest, middle, last = (add_job(database, tenant) for _ in range(3))
        with database.write() as session:
            cancel(session, tenant, last)
        assert page(database, tenant, after=last, status=QUEUED) == [middle, oldest]

    def test_every_row_is_seen_once_while_pages_are_deleted(self, database: Database, tenant: str):
        jobs = [add_job(database, tenant) for _ in range(9)]
        seen: list[str] = []
        while found := page(database, tenant, after=seen[-1] if seen else None, limit=2):
            seen += found
            for job in found:
                remove(database, tenant, job)
        assert seen == jobs[::-1]

    def test_of_another_tenant_are_unknown_deleted_or_not(self, database: Database, tenant: str):
        other = add_tenant(database, "b")
        add_job(database, other)
        there, gone = (add_job(database, tenant) for _ in range(2))
        remove(database, tenant, gone)
        for after in (there, gone, "job_neverexisted"):
            with pytest.raises(NotFoundError) as caught:
                page(database, other, after=after)
            assert str(caught.value) == f"there is no entry {after!r}"

    def test_of_all_tenants_go_on_after_any(self, database: Database, tenant: str):
        other = add_tenant(database, "b")
        oldest, gone = add_job(database, other), add_job(database, tenant)
        remove(database, tenant, gone)
        with database.read() as session:
            found = list_all_jobs(session, tenant_id=None, status=None, after=gone, limit=9)
            mine = list_all_jobs(session, tenant_id=tenant, status=None, after=gone, limit=9)
            with pytest.raises(NotFoundError):
                list_all_jobs(session, tenant_id=None, status=None, after="job_none", limit=9)
            with pytest.raises(NotFoundError, match="ten_none"):
                list_all_jobs(session, tenant_id="ten_none", status=None, after=None, limit=9)
        assert [job.id for job in found.rows] == [oldest]
        assert found.rows[0].tenant_id == other
        assert list(mine.rows) == []


class TestDatasets:
    def test_go_on_after_one_that_was_deleted(self, database: Database, tenant: str):
        for digit in "012":
            add_split(database, tenant, Blob(sha256=digit * 64, bytes=1))
        with database.read() as session:
            _, last, oldest = list_datasets(session, tenant, after=None, limit=9).rows
        with database.write() as session:
            delete_dataset(session, tenant, last.id)
        with database.read() as session:
            rows = list_datasets(session, tenant, after=last.id, limit=9).rows
            # A place in one list is none in another.
            with pytest.raises(NotFoundError):
                list_jobs(session, tenant, status=None, after=last.id, limit=9)
        assert [row.id for row in rows] == [oldest.id]
        assert isinstance(rows[0], Dataset)


def test_places_are_forgotten_after_a_day(database: Database, tenant: str):
    old, new = (add_job(database, tenant) for _ in range(2))
    for job in (old, new):
        remove(database, tenant, job)
    with database.write() as session:
        past = database_now(session) - timedelta(days=1, seconds=1)
        session.execute(sa.update(DeletedRow).where(DeletedRow.id == old).values(deleted_at=past))
    forget_old_records(database)
    assert page(database, tenant, after=new) == []
    with pytest.raises(NotFoundError):
        page(database, tenant, after=old)


class TestLongRows:
    @pytest.mark.parametrize("most", [1, 600, 1 << 20])
    def test_end_a_page_early_and_none_is_lost(
        self, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch, most: int
    ):
        monkeypatch.setattr(pages, "_MOST_CHARACTERS", most)
        jobs = [add_job(database, tenant, meta={"note": "x" * 250}) for _ in range(7)]
        seen: list[list[str]] = []
        while True:
            with database.read() as session:
                found = list_jobs(
                    session, tenant, status=None, after=seen[-1][-1] if seen else None, limit=5
                )
            seen.append([job.id for job in found.rows])
            if not found.has_more:
                break
        assert [job for each in seen for job in each] == jobs[::-1]
        assert [len(each) for each in seen] == {1: [1] * 7, 600: [2, 2, 2, 1]}.get(most, [5, 2])
