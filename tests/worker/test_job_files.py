"""worker.job_files: a job's folder, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from store.errors import BlobLostError
from store.storage import ArtifactStorage, Blob
from worker.job_files import JobFiles


@pytest.fixture
def storage(tmp_path: Path) -> ArtifactStorage:
    return ArtifactStorage(str(tmp_path / "artifacts"))


def make(folder: Path, storage: ArtifactStorage) -> JobFiles:
    def put(files: Mapping[str, Path]) -> dict[str, Blob]:
        return {name: storage.put("ten_a", file) for name, file in files.items()}

    return JobFiles(folder / "work" / "job", storage=storage, tenant_id="ten_a", put=put)


@pytest.fixture
def files(tmp_path: Path, storage: ArtifactStorage) -> JobFiles:
    return make(tmp_path, storage)


class TestFolder:
    def test_is_created_empty_and_removed(self, tmp_path: Path, storage: ArtifactStorage):
        left = tmp_path / "work" / "job" / "data" / "of a try before"
        left.mkdir(parents=True)
        files = make(tmp_path, storage)
        assert not left.exists()
        assert all(part.is_dir() for part in (files.data, files.checkpoints, files.output))
        files.remove()
        assert list((tmp_path / "work").iterdir()) == []


class TestCheckpoints:
    def test_come_back_as_they_were(self, files: JobFiles):
        folder = files.checkpoints / "step-00000002"
        folder.mkdir()
        for name in ("state.json", "rows.safetensors"):
            (folder / name).write_text(name)
        pinned = files.pin_checkpoint(sorted(folder.iterdir()))
        blobs = files.put_checkpoint(pinned)
        assert set(blobs) == {"step-00000002/state.json", "step-00000002/rows.safetensors"}
        files.drop_checkpoints()
        assert list(files.checkpoints.iterdir()) == []
        entries = {name: vars(blob) for name, blob in blobs.items()}
        files.fetch_checkpoint({"step": 2, "files": entries})
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: name for name in ("state.json", "rows.safetensors")
        }

    def test_that_are_pinned_outlive_their_own_names(self, files: JobFiles):
        folder = files.checkpoints / "step-00000001"
        folder.mkdir()
        (folder / "state.json").write_text("one")
        pinned = files.pin_checkpoint([folder / "state.json"])
        files.drop_checkpoints()
        assert (pinned / "state.json").read_text() == "one"
        files.unpin(pinned)
        assert not pinned.exists()

    def test_with_a_missing_file_are_not_pinned(self, files: JobFiles):
        folder = files.checkpoints / "step-00000001"
        folder.mkdir()
        (folder / "a").write_text("a")
        with pytest.raises(FileNotFoundError):
            files.pin_checkpoint([folder / "a", folder / "b"])
        assert list((files.checkpoints.parent / "pinned").iterdir()) == []


class TestSplits:
    def test_are_checked_against_their_hashes(
        self, files: JobFiles, storage: ArtifactStorage, tmp_path: Path
    ):
        source = tmp_path / "rows"
        source.write_bytes(b"rows")
        blob = storage.put("ten_a", source)
        found = files.fetch_splits({"train": {"sha256": blob.sha256}})
        assert found == {"train": files.data / "train.parquet"}
        assert found["train"].read_bytes() == b"rows"
        (tmp_path / "artifacts" / "ten_a" / blob.sha256).write_bytes(b"rowz")
        with pytest.raises(BlobLostError, match="damaged"):
            files.fetch_splits({"train": {"sha256": blob.sha256}})
