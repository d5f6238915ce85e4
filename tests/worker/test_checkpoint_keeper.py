"""worker.checkpoint_keeper: one checkpoint after another, and of those that wait the last."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from store.errors import ArtifactStorageError
from store.storage import ArtifactStorage, Blob
from tests.waiting import eventually, patience
from worker import checkpoint_keeper as module
from worker.checkpoint_keeper import CheckpointKeeper
from worker.job_files import JobFiles


class Reports:
    """Fakes the reporter and its lease.

    Attributes:
        kept: the steps that were named, with their files.
        flushed: how many had been named at each flush.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[int, dict[str, Blob]]] = []
        self.flushed: list[int] = []
        self.beats = 0
        self.lease = self

    def flush(self) -> None:
        self.flushed.append(len(self.kept))

    def beat(self) -> None:
        self.beats += 1

    def insist(self, write, **arguments) -> None:
        write(**arguments)

    def keep_checkpoint(self, *, step: int, files: dict[str, Blob]) -> None:
        self.kept.append((step, files))


class Gate(ArtifactStorage):
    """A store whose next put waits until released, or fails."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.open = threading.Event()
        self.open.set()
        self.failures = 0

    def put(self, tenant_id: str, file: Path, *, blob: Blob | None = None) -> Blob:
        assert self.open.wait(patience(20))
        if self.failures:
            self.failures -= 1
            raise ArtifactStorageError("the artifact store cannot be reached")
        return super().put(tenant_id, file, blob=blob)

    def put_all(self, files: Mapping[str, Path]) -> dict[str, Blob]:
        return {name: self.put("ten_a", file) for name, file in files.items()}


@pytest.fixture
def storage(tmp_path: Path) -> Gate:
    return Gate(str(tmp_path / "artifacts"))


@pytest.fixture
def files(tmp_path: Path, storage: Gate) -> JobFiles:
    return JobFiles(tmp_path / "job", storage=storage, tenant_id="ten_a", put=storage.put_all)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def keeper(files: JobFiles, reports: Reports, monkeypatch) -> Iterator[CheckpointKeeper]:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    keeper = CheckpointKeeper(files, reporter=reports)  # type: ignore[arg-type] # in its place
    yield keeper
    keeper.close()


def write(files: JobFiles, step: int) -> list[str]:
    """Write a checkpoint as the engine does, which removes the one before."""
    for old in files.checkpoints.iterdir():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    folder = files.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    (folder / "state.json").write_text(f"state {step}")
    return [str(folder / "state.json")]


def pinned(files: JobFiles) -> list[Path]:
    return list((files.checkpoints.parent / "pinned").glob("*/*/*"))


class TestKeeper:
    def test_only_the_newest_waiting_one_is_kept(self, keeper, files, storage, reports):
        storage.open.clear()
        for step in (1, 2, 3):
            keeper.offer(step, write(files, step))
            keeper.go_on()
        assert reports.kept == []
        storage.open.set()
        keeper.settle()
        assert [step for step, _ in reports.kept] == [1, 3]
        assert keeper.newest == 3
        blobs = [named[f"step-{step:08d}/state.json"] for step, named in reports.kept]
        read = [b"".join(storage.read("ten_a", blob.sha256)) for blob in blobs]
        assert read == [b"state 1", b"state 3"]
        assert pinned(files) == []

    def test_none_is_stored_once_they_are_abandoned(self, keeper, files, storage, reports):
        storage.open.clear()
        for step in (1, 2):
            keeper.offer(step, write(files, step))
            keeper.go_on()
        threading.Timer(0.1, storage.open.set).start()
        keeper.abandon()
        stored = list(storage.list())
        assert len(stored) == 1
        keeper.settle()
        assert list(storage.list()) == stored
        assert reports.kept == []

    def test_events_before_it_are_written_first(self, keeper, files, reports):
        keeper.offer(1, write(files, 1))
        keeper.settle()
        assert reports.flushed == [0]

    def test_a_failed_store_is_retried(self, keeper, files, storage, reports):
        storage.failures = 2
        keeper.offer(1, write(files, 1))

        def go_on() -> bool:
            keeper.go_on()
            return bool(reports.kept)

        eventually(go_on, seconds=10)
        assert reports.kept[0][0] == 1

    def test_a_failed_store_is_not_retried_if_a_newer_one_exists(
        self, keeper, files, storage, reports
    ):
        storage.failures = 1
        storage.open.clear()
        keeper.offer(1, write(files, 1))
        keeper.go_on()
        keeper.offer(2, write(files, 2))
        storage.open.set()

        def go_on() -> bool:
            keeper.go_on()
            return bool(reports.kept)

        eventually(go_on, seconds=10)
        assert [step for step, _ in reports.kept] == [2]
        assert pinned(files) == []

    def test_at_the_end_one_failure_is_enough(self, keeper, files, storage, reports):
        storage.failures = 100
        keeper.offer(1, write(files, 1))
        keeper.settle()
        assert reports.kept == []

    def test_the_lease_is_kept_meanwhile(self, keeper, files, storage, reports):
        storage.open.clear()
        keeper.offer(1, write(files, 1))
        threading.Timer(0.6, storage.open.set).start()
        keeper.settle()
        assert reports.beats >= 1
        assert len(reports.kept) == 1

    def test_a_removed_one_is_skipped(self, keeper, files, reports):
        old = write(files, 1)
        write(files, 2)
        keeper.offer(1, old)
        keeper.settle()
        assert reports.kept == []
