"""store.storage.space and .unnamed: reserved before stored, counted until removed, never lost."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from store.database.connection import database_now
from store.datasets import Split, add_dataset, delete_dataset, list_datasets
from store.errors import ArtifactStorageError, SpaceExceededError
from store.jobs.actions import cancel, delete
from store.states import JobStatus
from store.storage import ArtifactStorage, Blob, space
from store.storage.space import (
    RemovalUnderWayError,
    end,
    end_expired,
    extend,
    renew,
    reserve,
    reserve_for_repeat,
    store_files,
    used_bytes,
)
from store.storage.unnamed import remove_unnamed
from store.tables import Reservation, UnnamedBlob
from tests.store.queues import add_job, add_tenant, claimed

if TYPE_CHECKING:
    from store.database.connection import Database

LIMIT = 100


@pytest.fixture
def storage(tmp_path: Path) -> ArtifactStorage:
    return ArtifactStorage(str(tmp_path / "artifacts"))


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def used(database: Database, tenant: str) -> int:
    with database.read() as session:
        return used_bytes(session, tenant)


def reserved(database: Database, tenant: str, size: int | None) -> str:
    with database.write() as session:
        return reserve(session, tenant, size=size, max_bytes=LIMIT)


def ended(database: Database, reservation: str) -> None:
    with database.write() as session:
        end(session, reservation)


def expire(database: Database) -> None:
    """Let the uploads' gateways have died some time ago."""
    with database.write() as session:
        then = database_now(session) - timedelta(seconds=1)
        session.execute(
            sa.update(Reservation)
            .where(Reservation.expires_at.is_not(None))
            .values(expires_at=then)
        )


class Store:
    """Stores texts for a tenant."""

    def __init__(
        self, database: Database, storage: ArtifactStorage, tenant: str, folder: Path
    ) -> None:
        self.database = database
        self.storage = storage
        self.tenant = tenant
        self.folder = folder

    def files(self, *texts: str) -> dict[str, Path]:
        files = {f"part {number}": self.folder / f"{number}" for number in range(len(texts))}
        for text, file in zip(texts, files.values(), strict=True):
            file.write_text(text)
        return files

    def put(
        self, reservation: str, *texts: str, max_bytes: int | None = LIMIT
    ) -> Mapping[str, Blob]:
        return store_files(
            self.files(*texts),
            database=self.database,
            storage=self.storage,
            tenant_id=self.tenant,
            reservation_id=reservation,
            max_bytes=max_bytes,
        )

    def name(self, reservation: str, blobs: Mapping[str, Blob]) -> str:
        """Add a data set; return its id."""
        with self.database.write() as session:
            return add_dataset(
                session,
                self.tenant,
                name=None,
                splits={name: Split(blob=blob, rows=1) for name, blob in blobs.items()},
                columns={},
                profile={},
                max_bytes=LIMIT,
                reservation_id=reservation,
            ).id

    def upload(self, *texts: str) -> str:
        reservation = reserved(self.database, self.tenant, 1)
        return self.name(reservation, self.put(reservation, *texts))

    def delete(self, dataset: str) -> None:
        with self.database.write() as session:
            delete_dataset(session, self.tenant, dataset)

    def remove(self) -> int:
        return remove_unnamed(self.database, self.storage)

    def left(self) -> int:
        """Count the bytes that are in the store."""
        return sum(
            len(b"".join(self.storage.read(blob.tenant_id, blob.sha256)))
            for blob in self.storage.list()
        )


@pytest.fixture
def store(database: Database, storage: ArtifactStorage, tenant: str, tmp_path: Path) -> Store:
    (tmp_path / "files").mkdir()
    return Store(database, storage, tenant, tmp_path / "files")


class TestReserve:
    def test_counts_until_it_ends(self, database: Database, tenant: str):
        first = reserved(database, tenant, 60)
        with pytest.raises(SpaceExceededError, match=r"60 bytes.*60 more.*max_bytes is 100"):
            reserved(database, tenant, 60)
        reserved(database, add_tenant(database, "b"), 60)
        ended(database, first)
        assert used(database, tenant) == 0
        reserved(database, tenant, 100)

    def test_of_an_unknown_size_needs_a_byte_and_names_no_number(
        self, database: Database, tenant: str
    ):
        reserved(database, tenant, 99)
        reserved(database, tenant, None)
        assert used(database, tenant) == 100
        with pytest.raises(SpaceExceededError, match=r"^100 bytes.* reserved and more are needed"):
            reserved(database, tenant, None)

    def test_of_a_dead_gateway_expires(self, database: Database, tenant: str):
        reserved(database, tenant, 60)
        expire(database)
        reserved(database, tenant, 60)
        assert used(database, tenant) == 60
        expire(database)
        end_expired(database)
        assert used(database, tenant) == 0

    def test_that_is_renewed_does_not_expire(self, database: Database, tenant: str):
        held = reserved(database, tenant, 60)
        expire(database)
        renew(database, [held])
        end_expired(database)
        assert used(database, tenant) == 60

    def test_of_parallel_uploads_does_not_overshoot(self, database: Database, tenant: str):
        start = threading.Barrier(8)

        def attempt(_: int) -> bool:
            start.wait()
            try:
                reserved(database, tenant, 30)
            except SpaceExceededError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 3

    def test_of_one_repeated_upload_may_overshoot(self, database: Database, tenant: str):
        reserved(database, tenant, LIMIT)
        with database.write() as session:
            held = reserve_for_repeat(session, tenant, size=70, max_bytes=LIMIT)
        words = "reserved and more are needed"
        with database.write() as session, pytest.raises(SpaceExceededError, match=words):
            reserve_for_repeat(session, tenant, size=70, max_bytes=LIMIT)
        ended(database, held)
        with database.write() as session:
            reserve_for_repeat(session, tenant, size=70, max_bytes=LIMIT)


class TestExtend:
    def test_takes_what_there_is_room_for(self, database: Database, tenant: str):
        reserved(database, tenant, 40)
        held = reserved(database, tenant, 1)

        def extended(size: int) -> int:
            with database.write() as session:
                return extend(session, held, tenant_id=tenant, size=size, spare=30, max_bytes=LIMIT)

        assert extended(10) == 40
        assert extended(41) == 60
        with pytest.raises(SpaceExceededError, match=r"40 bytes.* and at least 61 more"):
            extended(61)
        assert used(database, tenant) == 100

    def test_of_an_expired_one_is_refused(self, database: Database, tenant: str):
        with database.write() as session, pytest.raises(ArtifactStorageError, match="given up"):
            extend(session, "res_none", tenant_id=tenant, size=1, spare=0, max_bytes=LIMIT)


class TestUpload:
    def test_counts_once_named_as_much_as_before(self, database: Database, store: Store):
        held = reserved(database, store.tenant, 90)
        blobs = store.put(held, "x" * 50)
        assert used(database, store.tenant) == 50
        store.name(held, blobs)
        assert used(database, store.tenant) == 50
        assert store.remove() == 0
        assert store.left() == 50

    def test_that_is_larger_when_converted_is_not_stored(self, database: Database, store: Store):
        store.upload("x" * 60)
        held = reserved(database, store.tenant, 10)
        with pytest.raises(SpaceExceededError, match=r"60 bytes.*41 more"):
            store.put(held, "y" * 41)
        assert store.left() == 60

    def test_that_is_not_named_is_removed_with_its_reservation(
        self, database: Database, store: Store
    ):
        held = reserved(database, store.tenant, 1)
        store.put(held, "x" * 50)
        assert store.remove() == 0  # it may still be named
        ended(database, held)
        assert used(database, store.tenant) == 50
        assert store.remove() == 1
        assert (store.left(), used(database, store.tenant)) == (0, 0)

    def test_whose_gateway_died_is_removed_later(self, database: Database, store: Store):
        store.put(reserved(database, store.tenant, 1), "x" * 50)
        expire(database)
        end_expired(database)
        assert used(database, store.tenant) == 50  # as long as it is there
        assert store.remove() == 1
        assert (store.left(), used(database, store.tenant)) == (0, 0)

    def test_whose_reservation_expired_names_nothing(self, database: Database, store: Store):
        held = reserved(database, store.tenant, 1)
        expire(database)
        end_expired(database)
        with pytest.raises(ArtifactStorageError, match="given up"):
            store.put(held, "x")
        assert store.left() == 0

    def test_that_expires_before_its_data_set_is_added_adds_none(
        self, database: Database, store: Store
    ):
        held = reserved(database, store.tenant, 1)
        blobs = store.put(held, "x" * 50)
        expire(database)
        end_expired(database)
        assert store.remove() == 1
        with pytest.raises(ArtifactStorageError, match="given up"):
            store.name(held, blobs)
        with database.read() as session:
            assert not list_datasets(session, store.tenant, after=None, limit=9).rows

    def test_that_expires_while_it_is_stored_leaves_nothing(
        self, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        put = ArtifactStorage.put

        def expire_and_put(*arguments: Any, **settings: Any) -> Blob:
            expire(database)
            end_expired(database)
            assert store.remove() == 1  # nothing is there yet
            return put(*arguments, **settings)

        monkeypatch.setattr(ArtifactStorage, "put", expire_and_put)
        held = reserved(database, store.tenant, 1)
        with pytest.raises(ArtifactStorageError, match="given up"):
            store.put(held, "x" * 50)
        assert used(database, store.tenant) == 50  # as long as it is there
        assert store.remove() == 1
        assert (store.left(), used(database, store.tenant)) == (0, 0)


class TestDelete:
    def test_frees_the_space_when_the_blobs_are_gone(self, database: Database, store: Store):
        for _ in range(3):
            dataset = store.upload("x" * 60)
            store.delete(dataset)
            assert used(database, store.tenant) == 60
            with pytest.raises(SpaceExceededError):
                reserved(database, store.tenant, 60)
            assert store.remove() == 1
            assert (store.left(), used(database, store.tenant)) == (0, 0)

    def test_keeps_a_blob_that_another_data_set_names(self, database: Database, store: Store):
        first, second = store.upload("x" * 30), store.upload("x" * 30)
        store.delete(first)
        assert store.remove() == 0
        assert (store.left(), used(database, store.tenant)) == (30, 30)
        store.delete(second)
        assert store.remove() == 1
        assert used(database, store.tenant) == 0

    def test_keeps_a_blob_that_is_stored_again_meanwhile(self, database: Database, store: Store):
        first = store.upload("x" * 30)
        held = reserved(database, store.tenant, 1)
        blobs = store.put(held, "x" * 30)
        store.delete(first)
        assert store.remove() == 0
        store.name(held, blobs)
        assert store.left() == 30

    def test_a_blob_that_is_being_removed_is_stored_only_after_that(
        self, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        store.delete(store.upload("x" * 30))
        in_delete, go_on = threading.Event(), threading.Event()
        remove = ArtifactStorage.delete

        def wait_and_delete(storage: ArtifactStorage, tenant_id: str, sha256: str) -> None:
            in_delete.set()
            assert go_on.wait(60)
            remove(storage, tenant_id, sha256)

        monkeypatch.setattr(ArtifactStorage, "delete", wait_and_delete)
        held = reserved(database, store.tenant, 1)
        with ThreadPoolExecutor(2) as pool:
            removing = pool.submit(store.remove)
            assert in_delete.wait(60)
            monkeypatch.setattr(space, "_WAIT_SECONDS", 0.0)
            with pytest.raises(RemovalUnderWayError) as raised:
                store.put(held, "x" * 30)
            told = raised.value.detail  # to the uploader, who knows no blobs and hashes
            assert "same content was deleted" in told
            assert "blob" not in told
            assert hashlib.sha256(b"x" * 30).hexdigest() not in told
            monkeypatch.setattr(space, "_WAIT_SECONDS", 60.0)
            storing = pool.submit(store.put, held, "x" * 30)
            go_on.set()
            assert removing.result() == 1
            store.name(held, storing.result())
        assert store.left() == 30

    def test_a_store_that_is_away_is_asked_again(
        self, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        store.delete(store.upload("x" * 30))

        def fail(*_: object) -> None:
            raise ArtifactStorageError("away")

        with monkeypatch.context() as patch:
            patch.setattr(ArtifactStorage, "delete", fail)
            assert store.remove() == 0
        assert used(database, store.tenant) == 30
        assert store.remove() == 0  # not yet: the request may still be on its way
        with database.write() as session:
            session.execute(
                sa.update(UnnamedBlob).values(
                    removed_until=database_now(session) - timedelta(seconds=1)
                )
            )
        assert store.remove() == 1
        assert used(database, store.tenant) == 0

    def test_of_two_at_once_removes_each_blob_once(self, database: Database, store: Store):
        dataset = store.upload(*map(str, range(20)))
        store.delete(dataset)
        with ThreadPoolExecutor(4) as pool:
            removed = sum(pool.map(lambda _: store.remove(), range(4)))
        removed += store.remove()
        assert removed == 20
        assert (store.left(), used(database, store.tenant)) == (0, 0)


class TestRounds:
    def test_without_anything_to_do_lock_nothing(
        self, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        store.upload("x")
        reserved(database, store.tenant, 1)

        def refuse(_: Database) -> None:
            raise AssertionError("a write transaction was opened")

        monkeypatch.setattr(type(database), "write", refuse)
        end_expired(database)
        assert store.remove() == 0


class TestJob:
    def test_reserves_space_for_its_artifacts_until_it_ends(self, database: Database, tenant: str):
        job = add_job(database, tenant, artifact_bytes=70, max_bytes=LIMIT)
        with pytest.raises(SpaceExceededError, match=r"70 bytes.*70 more"):
            add_job(database, tenant, artifact_bytes=70, max_bytes=LIMIT)
        with database.write() as session:
            cancel(session, tenant, job)
        assert used(database, tenant) == 0
        add_job(database, tenant, artifact_bytes=70, max_bytes=LIMIT)

    def test_holds_one_checkpoint_and_then_its_artifacts(self, database: Database, store: Store):
        job = add_job(database, store.tenant, artifact_bytes=10)
        _, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        for step in (1, 2, 3):
            blobs = store.put(job, "same", f"{step}" * 20, max_bytes=None)
            assert store.remove() == 0
            lease.keep_checkpoint(step=step, files=blobs)
            assert store.remove() == (1 if step > 1 else 0)
            assert store.left() == 24
        blobs = store.put(job, "artifact", max_bytes=None)
        assert used(database, store.tenant) >= store.left() == 32
        lease.succeed(result={}, artifacts={"float32": blobs["part 0"]})
        assert store.remove() == 2
        assert store.left() == used(database, store.tenant) == 8
        with database.write() as session:
            delete(session, store.tenant, job)
        assert store.remove() == 1
        assert store.left() == used(database, store.tenant) == 0

    def test_whose_worker_died_while_storing_leaves_nothing_when_it_ends(
        self, database: Database, store: Store
    ):
        job = add_job(database, store.tenant)
        _, lease = claimed(database)
        store.put(job, "half a checkpoint", max_bytes=None)
        lease.hand_back(message="")
        assert store.remove() == 0
        with database.write() as session:
            cancel(session, store.tenant, job)
        assert store.remove() == 1
        assert store.left() == used(database, store.tenant) == 0

    def test_that_ends_while_a_checkpoint_is_stored_leaves_nothing(
        self, database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        put = ArtifactStorage.put
        job = add_job(database, store.tenant)

        def cancel_and_put(*arguments: Any, **settings: Any) -> Blob:
            with database.write() as session:
                cancel(session, store.tenant, job)
            return put(*arguments, **settings)

        monkeypatch.setattr(ArtifactStorage, "put", cancel_and_put)
        with pytest.raises(ArtifactStorageError, match="given up"):
            store.put(job, "late", max_bytes=None)
        assert store.remove() == 1
        assert store.left() == used(database, store.tenant) == 0

    def test_that_ended_stores_nothing(self, database: Database, store: Store):
        job = add_job(database, store.tenant)
        with database.write() as session:
            cancel(session, store.tenant, job)
        with pytest.raises(ArtifactStorageError, match="given up"):
            store.put(job, "late", max_bytes=None)
        assert store.left() == 0
