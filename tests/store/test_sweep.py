"""store.sweep: unreferenced blobs are removed, referenced ones stay."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import sweep as module
from store.jobs.actions import delete
from store.states import JobStatus
from store.storage import ArtifactStorage, Blob
from store.storage.space import reserve, store_files
from store.storage.unnamed import remove_unnamed
from store.sweep import sweep
from tests.store.queues import add_job, add_split, add_tenant, claimed

if TYPE_CHECKING:
    from store.database.connection import Database


@pytest.fixture
def storage(tmp_path: Path) -> ArtifactStorage:
    return ArtifactStorage(str(tmp_path / "artifacts"))


def put(storage: ArtifactStorage, folder: Path, text: str, *, tenant: str) -> Blob:
    path = folder / "blob"
    path.write_text(text)
    return storage.put(tenant, path)


def age(storage: ArtifactStorage, folder: Path, *, seconds: float) -> None:
    """Make all blobs older by ``seconds``."""
    for blob in storage.list():
        moment = blob.modified_at.timestamp() - seconds
        os.utime(folder / "artifacts" / blob.tenant_id / blob.sha256, (moment, moment))


def left(storage: ArtifactStorage) -> set[str]:
    return {blob.sha256 for blob in storage.list()}


class TestSweep:
    def test_keeps_what_rows_name(self, database: Database, storage: ArtifactStorage, tmp_path):
        tenant = add_tenant(database, "a")
        split, artifact, checkpoint, orphan = (
            put(storage, tmp_path, text, tenant=tenant) for text in ("s", "a", "c", "o")
        )
        add_split(database, tenant, split)
        done, training = add_job(database, tenant), add_job(database, tenant)
        _, lease = claimed(database)
        lease.advance(JobStatus.TRAINING, message="")
        lease.succeed(result={}, artifacts={"float32": artifact})
        _, other = claimed(database)
        other.keep_checkpoint(step=1, files={"step-1/state.json": checkpoint})
        assert sweep(database, storage, grace_seconds=0) == 1
        assert left(storage) == {split.sha256, artifact.sha256, checkpoint.sha256}
        assert orphan.sha256 not in left(storage)
        with database.write() as session:
            delete(session, tenant, done)
        other.advance(JobStatus.TRAINING, message="")
        other.succeed(result={}, artifacts={})
        assert sweep(database, storage, grace_seconds=0) == 2
        assert left(storage) == {split.sha256}
        assert training

    def test_of_another_tenant_the_same_bytes_are_another_blob(
        self, database: Database, storage: ArtifactStorage, tmp_path
    ):
        mine, theirs = add_tenant(database, "a"), add_tenant(database, "b")
        blob = put(storage, tmp_path, "same", tenant=mine)
        put(storage, tmp_path, "same", tenant=theirs)
        add_split(database, mine, blob)
        assert sweep(database, storage, grace_seconds=0) == 1
        assert [(blob.tenant_id) for blob in storage.list()] == [mine]

    def test_leaves_what_is_no_blob(self, database: Database, storage: ArtifactStorage, tmp_path):
        others = ("notes", "ten_a/notes", f"ten_a/deeper/{'a' * 64}", f"{'a' * 64}", "ten_a/x#1")
        for name in others:
            path = tmp_path / "artifacts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("somebody else's")
        assert sweep(database, storage, grace_seconds=0) == 0
        assert all((tmp_path / "artifacts" / name).exists() for name in others)

    def test_removes_what_a_killed_process_has_left(
        self, database: Database, storage: ArtifactStorage, tmp_path
    ):
        half = tmp_path / "artifacts" / "ten_a" / f"{'a' * 64}#1"
        half.parent.mkdir(parents=True)
        half.write_text("ha")
        assert sweep(database, storage, grace_seconds=60) == 0
        assert half.exists()  # it may still be growing
        assert sweep(database, storage, grace_seconds=0) == 1
        assert not half.exists()

    def test_leaves_young_ones(self, database: Database, storage: ArtifactStorage, tmp_path):
        put(storage, tmp_path, "o", tenant="ten_a")
        assert sweep(database, storage, grace_seconds=60) == 0
        assert len(left(storage)) == 1

    def test_leaves_one_that_is_stored_again_before_a_row_names_it(
        self, database: Database, storage: ArtifactStorage, tmp_path, monkeypatch
    ):
        tenant = add_tenant(database, "a")
        blob = put(storage, tmp_path, "o", tenant=tenant)
        age(storage, tmp_path, seconds=100)
        ask_rows = module._named

        def renew(database: Database) -> set[tuple[str, str]]:
            named = ask_rows(database)
            put(storage, tmp_path, "o", tenant=tenant)  # its row is still to come
            return named

        monkeypatch.setattr(module, "_named", renew)
        assert sweep(database, storage, grace_seconds=60) == 0
        assert left(storage) == {blob.sha256}

    def test_leaves_one_that_is_stored_again_when_its_age_is_known(
        self, database: Database, storage: ArtifactStorage, tmp_path, monkeypatch
    ):
        tenant = add_tenant(database, "a")
        blob = put(storage, tmp_path, "o", tenant=tenant)
        age(storage, tmp_path, seconds=100)
        ask_age = ArtifactStorage.modified_at

        def ask_and_store(self: ArtifactStorage, tenant_id: str, sha256: str) -> datetime | None:
            found = ask_age(self, tenant_id, sha256)
            with database.write() as session:
                held = reserve(session, tenant, size=1, max_bytes=9)
            store_files(
                {"train": tmp_path / "blob"},
                database=database,
                storage=storage,
                tenant_id=tenant,
                reservation_id=held,
            )
            return found

        monkeypatch.setattr(ArtifactStorage, "modified_at", ask_and_store)
        assert sweep(database, storage, grace_seconds=60) == 0
        assert left(storage) == {blob.sha256}

    def test_two_at_once_both_finish(self, database: Database, storage: ArtifactStorage, tmp_path):
        for number in range(50):
            put(storage, tmp_path, f"{number}", tenant="ten_a")
        age(storage, tmp_path, seconds=100)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: sweep(database, storage, grace_seconds=60), range(2)))
        remove_unnamed(database, storage)  # each may have left some to the other
        assert left(storage) == set()

    def test_leaves_what_is_stored_and_named_while_it_runs(
        self, database: Database, storage: ArtifactStorage, tmp_path
    ):
        """One thread stores blobs and then rows while another sweeps."""
        tenant = add_tenant(database, "a")
        done = threading.Event()

        def sweep_on() -> int:
            removed = 0
            while not done.is_set():
                removed += sweep(database, storage, grace_seconds=60)
            return removed

        with ThreadPoolExecutor(1) as pool:
            sweeping = pool.submit(sweep_on)
            for number in range(20):
                blob = put(storage, tmp_path, f"{number % 5}", tenant=tenant)
                age(storage, tmp_path, seconds=50)
                add_split(database, tenant, blob)
            done.set()
        assert sweeping.result() == 0
        assert len(left(storage)) == 5
