"""worker.inference.deltas: fetched once, bounded, and every tenant for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import ArtifactStorageError
from store.storage import ArtifactStorage
from worker.inference.deltas import DeltaCache

SIZE = 1000


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "ten_1").iterdir()}


@pytest.fixture
def storage(tmp_path: Path) -> ArtifactStorage:
    return ArtifactStorage(str(tmp_path / "artifacts"))


@pytest.fixture
def blobs(storage: ArtifactStorage, tmp_path: Path) -> list[str]:
    hashes = []
    for index in range(4):
        file = tmp_path / "blob"
        file.write_bytes(bytes([index]) * SIZE)
        hashes.append(storage.put("ten_1", file).sha256)
    return hashes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestDeltaCache:
    def test_fetches_a_blob_once(self, storage: ArtifactStorage, blobs: list[str], folder: Path):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        assert cache.fetch("ten_1", blobs[1]).read_bytes() == b"\1" * SIZE
        storage.delete("ten_1", blobs[1])
        assert cache.fetch("ten_1", blobs[1]).read_bytes() == b"\1" * SIZE

    def test_the_one_used_longest_ago_makes_room(
        self, storage: ArtifactStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=2 * SIZE)
        for index in (0, 1, 0, 2):
            cache.fetch("ten_1", blobs[index])
        assert kept(folder) == {blobs[0], blobs[2]}

    def test_one_that_is_too_large_is_given_all_the_same(
        self, storage: ArtifactStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=SIZE // 2)
        assert cache.fetch("ten_1", blobs[0]).is_file()
        assert cache.fetch("ten_1", blobs[3]).is_file()
        assert kept(folder) == {blobs[3]}

    def test_a_blob_of_another_tenant_is_not_there(
        self, storage: ArtifactStorage, blobs: list[str], folder: Path
    ):
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        cache.fetch("ten_1", blobs[0])
        with pytest.raises(ArtifactStorageError):
            cache.fetch("ten_2", blobs[0])

    def test_a_damaged_blob_is_not_kept(
        self, storage: ArtifactStorage, blobs: list[str], folder: Path, tmp_path: Path
    ):
        (tmp_path / "artifacts" / "ten_1" / blobs[0]).write_bytes(b"changed")
        cache = DeltaCache(storage, folder=folder, max_bytes=10 * SIZE)
        with pytest.raises(ArtifactStorageError, match="damaged"):
            cache.fetch("ten_1", blobs[0])
        assert kept(folder) == set()
