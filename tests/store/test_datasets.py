"""store.datasets: ownership, quotas, and when they may be deleted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from store.datasets import (
    Split,
    add_dataset,
    delete_dataset,
    find_dataset,
    get_dataset,
    list_datasets,
)
from store.errors import (
    DatasetAmbiguousError,
    DatasetInUseError,
    NotFoundError,
    QuotaExceededError,
)
from store.jobs.actions import cancel
from store.storage import Blob
from tests.store.queues import add_job, add_tenant

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.tables import Dataset


def add(database: Database, tenant: str, *, size: int = 10, max_bytes: int = 100) -> Dataset:
    splits = {
        name: Split(blob=Blob(sha256=digit * 64, bytes=size), rows=rows)
        for name, digit, rows in (("train", "1", 8), ("validation", "2", 2))
    }
    with database.write() as session:
        return add_dataset(
            session,
            tenant,
            name="mrpc",
            splits=splits,
            columns={"text": "string"},
            profile={},
            max_bytes=max_bytes,
        )


class TestAdd:
    def test_lists_its_splits(self, database: Database):
        tenant = add_tenant(database, "a")
        added = add(database, tenant)
        with database.read() as session:
            dataset = get_dataset(session, tenant, added.id)
        assert dataset.splits["train"] == {"rows": 8, "bytes": 10, "sha256": "1" * 64}
        assert (dataset.name, dataset.bytes) == ("mrpc", 20)
        assert add(database, tenant).sha256 == dataset.sha256

    @pytest.mark.parametrize("quotas", [{}, {"max_bytes": 70}])
    def test_stops_at_the_quota(self, database: Database, quotas: dict[str, int]):
        tenant = add_tenant(database, "a", **quotas)
        limit = quotas.get("max_bytes", 100)
        for _ in range(limit // 20):
            add(database, tenant)
        with pytest.raises(QuotaExceededError, match=f"max_bytes is {limit}"):
            add(database, tenant)
        add(database, add_tenant(database, "b"))

    def test_parallel_ones_do_not_overshoot(self, database: Database):
        tenant = add_tenant(database, "a")
        start = threading.Barrier(8)

        def attempt(_: int) -> bool:
            start.wait()
            try:
                add(database, tenant)
            except QuotaExceededError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 5


class TestFind:
    def test_takes_an_id_or_the_only_one_of_a_name(self, database: Database):
        tenant = add_tenant(database, "a")
        dataset = add(database, tenant)
        add(database, add_tenant(database, "b"))  # of the same name
        with database.read() as session:
            assert find_dataset(session, tenant, dataset.id).id == dataset.id
            assert find_dataset(session, tenant, "mrpc").id == dataset.id
            with pytest.raises(NotFoundError, match="no dataset 'sst2'"):
                find_dataset(session, tenant, "sst2")

    def test_an_ambiguous_name_lists_the_ids(self, database: Database):
        tenant = add_tenant(database, "a")
        first, second = add(database, tenant), add(database, tenant)
        with (
            database.read() as session,
            pytest.raises(DatasetAmbiguousError, match=f"{second.id}, {first.id}"),
        ):
            find_dataset(session, tenant, "mrpc")

    def test_lists_those_of_a_name(self, database: Database):
        tenant = add_tenant(database, "a")
        dataset = add(database, tenant)
        with database.read() as session:
            for name, found in (("mrpc", [dataset.id]), ("sst2", [])):
                page = list_datasets(session, tenant, name=name, after=None, limit=9)
                assert [each.id for each in page.rows] == found


class TestOwner:
    def test_another_tenants_is_not_there(self, database: Database):
        mine, other = add_tenant(database, "a"), add_tenant(database, "b")
        dataset = add(database, mine)
        with database.write() as session:
            with pytest.raises(NotFoundError):
                get_dataset(session, other, dataset.id)
            with pytest.raises(NotFoundError):
                delete_dataset(session, other, dataset.id)
            assert not list_datasets(session, other, after=None, limit=10).rows
            with pytest.raises(NotFoundError):
                list_datasets(session, other, after=dataset.id, limit=10)
        with pytest.raises(NotFoundError):
            add_job(database, other, dataset_id=dataset.id)


class TestDelete:
    def test_waits_for_the_jobs_that_need_it(self, database: Database):
        tenant = add_tenant(database, "a")
        dataset = add(database, tenant)
        job = add_job(database, tenant, dataset_id=dataset.id)
        with database.write() as session, pytest.raises(DatasetInUseError, match=job):
            delete_dataset(session, tenant, dataset.id)
        with database.write() as session:
            cancel(session, tenant, job)
            delete_dataset(session, tenant, dataset.id)
        with database.read() as session, pytest.raises(NotFoundError):
            get_dataset(session, tenant, dataset.id)
