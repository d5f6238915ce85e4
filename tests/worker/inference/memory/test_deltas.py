"""worker.inference.memory.deltas: fetched once, bounded, and every tenant for itself."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.errors import ArtifactStorageError, BlobLostError
from store.storage import ArtifactStorage
from tests.waiting import patience
from worker.inference.memory.deltas import DeltaCache

SIZE = 1000


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "ten_1").iterdir()}


def read(cache: DeltaCache, sha256: str, *, tenant: str = "ten_1") -> bytes:
    with cache.hold(tenant, sha256) as file:
        return file.read_bytes()


class SlowStorage(ArtifactStorage):
    """Counts the fetches; some wait until released."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fetched: Counter[str] = Counter()
        self.slow: set[str] = set()
        self.gate = threading.Event()

    def fetch(self, tenant_id: str, sha256: str, *, to: Path) -> None:
        self.fetched[sha256] += 1
        if sha256 in self.slow:
            assert self.gate.wait(patience(30))
        super().fetch(tenant_id, sha256, to=to)


@pytest.fixture
def storage(tmp_path: Path) -> SlowStorage:
    return SlowStorage(str(tmp_path / "artifacts"))


@pytest.fixture
def blobs(storage: SlowStorage, tmp_path: Path) -> list[str]:
    hashes = []
    for index in range(4):
        file = tmp_path / "blob"
        file.write_bytes(bytes([index]) * SIZE)
        hashes.append(storage.put("ten_1", file).sha256)
    return hashes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def held_elsewhere(cache: DeltaCache, sha256: str) -> Iterator[threading.Thread]:
    """Request a blob in another thread."""
    thread = threading.Thread(target=read, args=(cache, sha256))
    thread.start()
    yield thread
    thread.join(patience(30))


class TestDeltaCache:
    def test_fetches_a_blob_once(self, storage: SlowStorage, blobs: list[str], folder: Path):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        assert read(cache, blobs[1]) == b"\1" * SIZE
        storage.delete("ten_1", blobs[1])
        assert read(cache, blobs[1]) == b"\1" * SIZE
        assert (len(cache), cache.nbytes) == (1, SIZE)

    def test_the_least_recently_used_is_evicted(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=2 * SIZE)
        for index in (0, 1, 0, 2):
            read(cache, blobs[index])
        assert kept(folder) == {blobs[0], blobs[2]}
        assert (len(cache), cache.nbytes) == (2, 2 * SIZE)
        assert read(cache, blobs[1]) == b"\1" * SIZE  # it comes back
        assert storage.fetched[blobs[1]] == 2

    def test_one_larger_than_the_budget_is_still_returned(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=SIZE // 2)
        assert read(cache, blobs[0]) == b"\0" * SIZE
        assert read(cache, blobs[3]) == b"\3" * SIZE
        assert kept(folder) == {blobs[3]}

    def test_a_file_in_use_stays(self, storage: SlowStorage, blobs: list[str], folder: Path):
        cache = DeltaCache(storage, folder=folder, max_bytes=SIZE)
        with cache.hold("ten_1", blobs[0]) as file:
            for index in (1, 2, 3):
                read(cache, blobs[index])
            assert file.read_bytes() == b"\0" * SIZE
            assert blobs[0] in kept(folder)
        read(cache, blobs[1])
        assert kept(folder) == {blobs[1]}

    def test_a_removed_file_is_fetched_again(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        with cache.hold("ten_1", blobs[0]) as file:
            file.unlink()
        assert read(cache, blobs[0]) == b"\0" * SIZE
        assert cache.nbytes == SIZE

    def test_a_blob_of_another_tenant_is_not_there(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        read(cache, blobs[0])
        with pytest.raises(BlobLostError):
            read(cache, blobs[0], tenant="ten_2")

    def test_a_damaged_blob_is_not_kept(
        self, storage: SlowStorage, blobs: list[str], folder: Path, tmp_path: Path
    ):
        (tmp_path / "artifacts" / "ten_1" / blobs[0]).write_bytes(b"changed")
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        with pytest.raises(ArtifactStorageError, match="damaged"):
            read(cache, blobs[0])
        assert kept(folder) == set()
        assert not cache._users
        assert not cache._fetching

    def test_unused_blobs_are_forgotten(self, storage: SlowStorage, blobs: list[str], folder: Path):
        cache = DeltaCache(storage, folder=folder, max_bytes=SIZE)
        for sha256 in blobs:
            read(cache, sha256)
        assert (len(cache._users), len(cache._fetching), len(cache)) == (0, 0, 1)


class TestSlowStore:
    def test_one_fetch_holds_up_no_other(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        read(cache, blobs[1])
        storage.slow.add(blobs[0])
        with held_elsewhere(cache, blobs[0]) as thread:
            assert read(cache, blobs[1]) == b"\1" * SIZE  # on disk
            assert read(cache, blobs[2]) == b"\2" * SIZE  # to be fetched
            assert thread.is_alive()
            storage.gate.set()
        assert kept(folder) == set(blobs[:3])

    def test_many_readers_of_one_blob_fetch_it_once(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        storage.slow.add(blobs[0])
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: got.append(read(cache, blobs[0]))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        storage.gate.set()
        for thread in threads:
            thread.join(patience(30))
        assert got == [b"\0" * SIZE] * 8
        assert storage.fetched[blobs[0]] == 1

    def test_under_pressure_every_reader_gets_its_blob(
        self, storage: SlowStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=SIZE)
        wrong: list[object] = []

        def work(start: int) -> None:
            for step in range(60):
                index = (start + step) % len(blobs)
                try:
                    if read(cache, blobs[index]) != bytes([index]) * SIZE:
                        wrong.append(index)
                except Exception as error:  # noqa: BLE001 - any is too many
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience(60))
        assert wrong == []
        assert not cache._users
