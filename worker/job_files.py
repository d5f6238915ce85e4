"""A job's files on the worker's disk, and their transfer from and to the artifact store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.storage import ArtifactStorage, Blob


class JobFiles:
    """The folder of one job: its data, its checkpoints, its artifacts.

    Transfers raise ArtifactStorageError if the store is full or cannot be reached; BlobLostError,
    which is one, if a file is missing or damaged there; OSError if this disk has no room.

    Args:
        folder: created, and emptied if it exists.
        storage: the artifact store.
        tenant_id: the owner of the blobs.
        put: stores files in the name of the job, and returns their blobs by the same names.

    Attributes:
        data: the folder of the splits.
        checkpoints: the folder in which the library keeps its checkpoints.
        output: the folder to which the engine writes the artifacts.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        *,
        storage: ArtifactStorage,
        tenant_id: str,
        put: Callable[[Mapping[str, Path]], dict[str, Blob]],
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._tenant_id = tenant_id
        self._put = put
        self._pins = 0
        self.data = folder / "data"
        self.checkpoints = folder / "checkpoints"
        self.output = folder / "output"
        shutil.rmtree(folder, ignore_errors=True)
        for part in (self.data, self.checkpoints, self.output):
            part.mkdir(parents=True)

    def fetch_splits(self, splits: Mapping[str, Any]) -> dict[str, Path]:
        """Fetch a data set's splits."""
        files = {split: self.data / f"{split}.parquet" for split in splits}
        for split, file in files.items():
            self._storage.fetch(self._tenant_id, splits[split]["sha256"], to=file)
        return files

    def fetch_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Fetch a checkpoint, from which the library then resumes."""
        for name, blob in checkpoint["files"].items():
            file = self.checkpoints / name
            file.parent.mkdir(exist_ok=True)
            self._storage.fetch(self._tenant_id, blob["sha256"], to=file)

    def pin_checkpoint(self, files: Sequence[Path]) -> Path:
        """Hard-link a checkpoint's files, so that they stay when the library removes them.

        Raises:
            FileNotFoundError: a file no longer exists.
            OSError: the links cannot be created.
        """
        self._pins += 1
        pinned = self._folder / "pinned" / str(self._pins) / files[0].parent.name
        pinned.mkdir(parents=True)
        try:
            for file in files:
                (pinned / file.name).hardlink_to(file)
        except OSError:
            self.unpin(pinned)
            raise
        return pinned

    def unpin(self, pinned: Path) -> None:
        """Remove the hard links."""
        shutil.rmtree(pinned.parent, ignore_errors=True)

    def put_checkpoint(self, pinned: Path) -> dict[str, Blob]:
        """Store a pinned checkpoint's files."""
        return self._put({f"{pinned.name}/{file.name}": file for file in sorted(pinned.iterdir())})

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints, so that the library starts over."""
        shutil.rmtree(self.checkpoints)
        self.checkpoints.mkdir()

    def put_artifacts(self, artifacts: Mapping[str, str]) -> dict[str, Blob]:
        """Store the artifacts' files."""
        return self._put({encoding: Path(path) for encoding, path in artifacts.items()})

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
