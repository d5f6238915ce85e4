"""Head deltas on local disk, the least recently used ones making room for others."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.storage import ArtifactStorage


class DeltaCache:
    """Fetches blobs of the artifact store, and keeps the last ones.

    Args:
        storage: where all of them are.
        folder: of this process alone.
        max_bytes: of what is kept; one file that is larger is fetched all the same.
    """

    def __init__(self, storage: ArtifactStorage, *, folder: Path, max_bytes: int) -> None:
        self._storage = storage
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def fetch(self, tenant: str, sha256: str) -> Path:
        """Give a blob's file. It may be removed as soon as another blob is fetched.

        Args:
            tenant: whose blob it is; a blob of another tenant is not found, be it the same.
            sha256: its name and hash.

        Raises:
            BlobLostError: it is not there, or damaged.
            ArtifactStorageError: the store cannot be reached.
            OSError: there is no room for it here.
        """
        file = self._folder / tenant / sha256
        with self._lock:
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._storage.fetch(tenant, sha256, to=file)
            os.utime(file)  # now it is the one used last
            self._make_room(keep=file)
        return file

    def _make_room(self, *, keep: Path) -> None:
        facts = [(path, path.stat()) for path in self._folder.glob("*/*")]
        held = sum(stat.st_size for _, stat in facts)
        for path, stat in sorted(facts, key=lambda fact: fact[1].st_mtime_ns):
            if held <= self._max_bytes:
                return
            if path != keep:
                path.unlink()
                held -= stat.st_size
