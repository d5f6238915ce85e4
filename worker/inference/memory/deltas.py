"""Cache head deltas on the local disk; evict the least recently used ones."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from worker.inference.memory.recency import LeastRecentlyUsed

if TYPE_CHECKING:
    from store.storage import ArtifactStorage

_Key: TypeAlias = tuple[str, str]  # tenant and hash


class DeltaCache:
    """Fetches blobs from the artifact store, and keeps the most recently used ones.

    Args:
        storage: the artifact store.
        folder: used by this process only.
        max_bytes: of the kept files; files in use are kept even beyond this.
    """

    def __init__(self, storage: ArtifactStorage, *, folder: Path, max_bytes: int) -> None:
        self._storage = storage
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: LeastRecentlyUsed[_Key, Path] = LeastRecentlyUsed(max_bytes)
        self._users: Counter[_Key] = Counter()
        self._fetching: dict[_Key, threading.Lock] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of all kept files."""
        return self._kept.held

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def hold(self, tenant: str, sha256: str) -> Iterator[Path]:
        """Yield a blob's file; it is kept during the block. Fetching one blob blocks no other.

        Another tenant's blob is not found, even if it is equal.

        Raises:
            BlobLostError: it does not exist, or is damaged.
            ArtifactStorageError: the store cannot be reached.
            OSError: the disk has no room for it.
        """
        key = tenant, sha256
        file = self._folder / tenant / sha256
        with self._lock:
            self._users[key] += 1
            fetching = self._fetching.setdefault(key, threading.Lock())
        try:
            with fetching:  # only one of several callers fetches it
                if not file.is_file():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._storage.fetch(tenant, sha256, to=file)
                self._keep(key, file)
            yield file
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key], self._fetching[key]

    def _keep(self, key: _Key, file: Path) -> None:
        with self._lock:
            self._kept.put(key, file, size=file.stat().st_size)
            for _, old in self._kept.shrink(is_used=self._users.__contains__):
                old.unlink(missing_ok=True)
