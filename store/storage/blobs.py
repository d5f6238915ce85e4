"""Blobs in a folder or on S3, named by tenant and SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import LocalStore, from_url

from store.errors import ArtifactStorageError, BlobLostError, SettingsError
from store.storage.breaker import Breaker

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

# A blob is read in parts, each by a request of its own: so a time limit holds for each part, not
# for a blob of any size, and a slow reader keeps no connection to the store.
_PART_BYTES = 8 << 20
_STREAMED_BYTES = 1 << 20  # held in memory for each download
_STREAM_SECONDS = 10.0  # for each part, retries included
_PARALLEL_PARTS = 4  # of an upload, each of 5 MiB in memory
_BLOB = re.compile(r"([^/]+)/([0-9a-f]{64})")
_UNFINISHED = "*/*#*"  # obstore's names of incomplete files in a folder
_MARK = ".hifi-artifacts"  # marks folders created here; without it, a disk may not be mounted
_PROBE = ".hifi-probe"
_PROBE_BYTES = 64 << 10  # more than what a file system may keep without a free block
# obstore ends every request after 30 s, and retries it if less than this has passed by then.
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_OUR_FOLDER, _OUR_FILE = 0o700, 0o600
_UNAVAILABLE = "the artifact store is unavailable; retry later"


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A stored file: its SHA-256, which is its name, and its size."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, file: Path) -> Blob:
        """Return the blob that a file becomes."""
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return cls(sha256=digest, bytes=opened.tell())


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """A blob in a listing."""

    tenant_id: str
    sha256: str
    bytes: int
    modified_at: datetime


class ArtifactStorage:
    """Blobs at ``tenant/sha256``: written completely or not at all, never changed.

    Methods raise ArtifactStorageError if the store is full or cannot be reached. Every call ends in
    bounded time. After failures in a row, those for a tenant are refused at once for some seconds.

    Args:
        url: ``s3://bucket/prefix`` (credentials and endpoint from the usual ``AWS_…`` variables),
            ``file:///folder`` or a folder's path; the folder is created.

    Raises:
        SettingsError: an unknown kind of store.
    """

    def __init__(self, url: str) -> None:
        self._store: ObjectStore
        self._folder: Path | None = None
        # A full store can be read.
        self._reads, self._writes = Breaker(), Breaker()
        try:
            if urlsplit(url).scheme in ("", "file"):
                self._folder = Path(url.removeprefix("file://")).absolute()
                is_new = not self._folder.exists()
                self._folder.mkdir(mode=_OUR_FOLDER, parents=True, exist_ok=True)
                self._store = LocalStore(self._folder)
                if is_new:
                    (self._folder / _MARK).touch(mode=_OUR_FILE)
            else:
                self._store = from_url(url, retry_config=_RETRIES)
        except (ObstoreError, ValueError, OSError) as error:
            raise SettingsError(
                f"the artifact store {url} cannot be used: {_first_line(error)}"
            ) from error

    def put(self, tenant_id: str, file: Path, *, blob: Blob | None = None) -> Blob:
        """Store a file.

        Storing a blob again resets its age, so that no sweep removes it before a row names it.

        Args:
            tenant_id: the owner.
            file: to be stored.
            blob: of the file, if the caller has computed it.
        """
        blob = blob or Blob.of(file)
        name = _name(tenant_id, blob.sha256)
        with self._writes.watch(tenant_id), _typed(f"store {blob.sha256}"):
            if self._folder is not None:
                (self._folder / tenant_id).mkdir(mode=_OUR_FOLDER, exist_ok=True)
            obstore.put(self._store, name, file, max_concurrency=_PARALLEL_PARTS)
            if self._folder is not None:
                (self._folder / name).chmod(_OUR_FILE)
        return blob

    def read(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """Read a blob in parts.

        Raises:
            BlobLostError: the blob does not exist; raised before the first part.
        """
        with self._reads.watch(tenant_id), _typed(f"read {sha256}"):
            try:
                size = obstore.head(self._store, _name(tenant_id, sha256))["size"]
            except FileNotFoundError as error:
                self._check_presence()
                raise _lost(sha256) from error
        return self._parts(tenant_id, sha256, size=size)

    def _parts(self, tenant_id: str, sha256: str, *, size: int) -> Iterator[bytes]:
        name = _name(tenant_id, sha256)
        for start, end in _spans(0, size, step=_PART_BYTES):
            with self._reads.watch(tenant_id), _typed(f"read {sha256}"):
                part = bytes(obstore.get_range(self._store, name, start=start, end=end))
            yield part

    async def stream(
        self, tenant_id: str, sha256: str, *, start: int, end: int
    ) -> AsyncIterator[bytes]:
        """Read the bytes ``start`` to ``end`` (not included) of a blob, without using a thread.

        Raises:
            BlobLostError: the blob does not exist, or is shorter.
            ArtifactStorageError: also if the store does not answer within ten seconds.
        """
        for first, last in _spans(start, end, step=_STREAMED_BYTES):
            with self._reads.watch(tenant_id), _typed(f"read {sha256}"):
                try:
                    async with asyncio.timeout(_STREAM_SECONDS):
                        part = await self._get(_name(tenant_id, sha256), first, last)
                except FileNotFoundError as error:
                    await asyncio.to_thread(self._check_presence)
                    raise _lost(sha256) from error
                if len(part) != last - first:
                    raise _damaged(sha256)
            yield part

    async def _get(self, name: str, start: int, end: int) -> bytes:
        return bytes(await obstore.get_range_async(self._store, name, start=start, end=end))

    def _check_presence(self) -> None:
        """Check that only a blob is missing, and not the whole store: a bucket, or a disk."""
        if self._folder is None:
            self.check()
        else:
            self._check_mark()

    def _check_mark(self) -> None:
        if self._folder is not None and not (self._folder / _MARK).exists():
            message = f"{self._folder} does not look like the artifact store"
            raise ArtifactStorageError(message, detail=_UNAVAILABLE)

    def fetch(self, tenant_id: str, sha256: str, *, to: Path) -> None:
        """Copy a blob to a file, atomically, after checking its hash.

        Raises:
            BlobLostError: the blob does not exist, or its hash is not its name.
        """
        partial = to.with_name(f".{to.name}.part")
        digest = hashlib.sha256()
        try:
            with open(partial, "wb", opener=_open_privately) as file:
                for chunk in self.read(tenant_id, sha256):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise _damaged(sha256)
            partial.replace(to)
        finally:
            partial.unlink(missing_ok=True)

    def list(self) -> Iterator[StoredBlob]:
        """List all blobs; ignore other files in the same bucket or folder."""
        with _typed("list the blobs"):
            for entries in obstore.list(self._store):
                for entry in entries:
                    if (name := _BLOB.fullmatch(entry["path"])) is not None:
                        yield StoredBlob(
                            tenant_id=name[1],
                            sha256=name[2],
                            bytes=entry["size"],
                            modified_at=entry["last_modified"],
                        )

    def modified_at(self, tenant_id: str, sha256: str) -> datetime | None:
        """Return when a blob was last stored; None if it does not exist."""
        with self._reads.watch(tenant_id), _typed(f"look at {sha256}"):
            try:
                return obstore.head(self._store, _name(tenant_id, sha256))["last_modified"]
            except FileNotFoundError:
                return None

    def delete(self, tenant_id: str, sha256: str) -> None:
        """Delete a blob; do nothing if it does not exist."""
        with self._writes.watch(tenant_id), _typed(f"delete {sha256}"):
            self._delete(_name(tenant_id, sha256))

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def remove_unfinished(self, *, before: datetime) -> int:
        """Remove incomplete files that killed processes left; only a folder can have them.

        Args:
            before: younger files may still be growing.

        Returns:
            The number of files removed.
        """
        if self._folder is None:
            return 0
        with _typed("remove unfinished files"):
            return sum(
                _remove_if_old(path, before=before)
                for path in self._folder.glob(_UNFINISHED)
                if _BLOB.fullmatch(f"{path.parent.name}/{path.name.partition('#')[0]}")
            )

    def check(self) -> None:
        """Check that the store answers."""
        with _typed("be reached"):
            next(iter(obstore.list(self._store, chunk_size=1)), None)

    def check_writable(self) -> None:
        """Check that the store accepts a small file, which is removed again."""
        if self._folder is not None:
            self._check_mark()
        with _typed("store anything"):
            obstore.put(self._store, _PROBE, bytes(_PROBE_BYTES))
            self._delete(_PROBE)


def _name(tenant_id: str, sha256: str) -> str:
    return f"{tenant_id}/{sha256}"


def _remove_if_old(path: Path, *, before: datetime) -> bool:
    try:
        if datetime.fromtimestamp(path.stat().st_mtime, UTC) >= before:
            return False
        path.unlink()
    except FileNotFoundError:  # it is complete now, or another process has removed it
        return False
    return True


def _spans(start: int, end: int, *, step: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, step):
        yield first, min(first + step, end)


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, _OUR_FILE)


def _lost(sha256: str) -> BlobLostError:
    return BlobLostError(f"blob {sha256} is not in the artifact store")


def _damaged(sha256: str) -> BlobLostError:
    return BlobLostError(f"blob {sha256} is damaged in the artifact store")


@contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except (ObstoreError, OSError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else _first_line(error)
        message = f"the artifact store cannot {what}: {reason}"
        raise ArtifactStorageError(message, detail=_UNAVAILABLE) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
