"""The artifact store: blobs in a folder or on S3, named by tenant and SHA-256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
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

if TYPE_CHECKING:
    from obstore import GetOptions, OffsetRange
    from obstore.store import ObjectStore, RetryConfig

_CHUNK = 1 << 20
_BLOB = re.compile(r"([^/]+)/([0-9a-f]{64})")
_UNFINISHED = "*/*#*"  # obstore's names of incomplete files in a folder
_MARK = ".hifi-artifacts"  # marks folders created here; without it, a disk may not be mounted
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A stored file: its SHA-256, which is its name, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """A blob in a listing."""

    tenant_id: str
    sha256: str
    modified_at: datetime


class ArtifactStorage:
    """Blobs at ``tenant/sha256``: written completely or not at all, never changed.

    Methods raise ArtifactStorageError if the store is full or cannot be reached.

    Args:
        url: ``s3://bucket/prefix`` (credentials and endpoint from the usual ``AWS_…`` variables),
            ``file:///folder`` or a folder's path; the folder is created.

    Raises:
        SettingsError: an unknown kind of store.
    """

    def __init__(self, url: str) -> None:
        self._store: ObjectStore
        self._folder: Path | None = None
        try:
            if urlsplit(url).scheme in ("", "file"):
                self._folder = Path(url.removeprefix("file://")).absolute()
                is_new = not self._folder.exists()
                self._store = LocalStore(self._folder, mkdir=True)
                if is_new:
                    (self._folder / _MARK).touch()
            else:
                self._store = from_url(url, retry_config=_RETRIES)
        except (ObstoreError, ValueError, OSError) as error:
            raise SettingsError(
                f"the artifact store {url} cannot be used: {_first_line(error)}"
            ) from error

    def put(self, tenant_id: str, file: Path) -> Blob:
        """Store a file.

        Storing a blob again resets its age, so that no sweep removes it before a row names it.
        """
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            size = opened.tell()
        with _typed(f"store {digest}"):
            obstore.put(self._store, _name(tenant_id, digest), file)
        return Blob(sha256=digest, bytes=size)

    def read(
        self, tenant_id: str, sha256: str, *, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        """Stream a blob, or the bytes ``start`` to ``end`` (not included) of it.

        Raises:
            BlobLostError: the blob does not exist. Errors come before the first bytes if possible.
        """
        name = _name(tenant_id, sha256)
        with _typed(f"read {sha256}"):
            options: GetOptions = {"range": _range(start, end)} if start or end is not None else {}
            try:
                answer = obstore.get(self._store, name, options=options)
            except FileNotFoundError as error:
                self._check_presence()
                raise BlobLostError(f"blob {sha256} is not in the artifact store") from error
            stream = answer.stream(min_chunk_size=_CHUNK)
        return _chunks(stream, sha256)

    def _check_presence(self) -> None:
        """Check that only a blob is missing, and not the whole store: a bucket, or a disk."""
        if self._folder is None:
            self.check()
        elif not (self._folder / _MARK).exists():
            raise ArtifactStorageError(f"{self._folder} does not look like the artifact store")

    def fetch(self, tenant_id: str, sha256: str, *, to: Path) -> None:
        """Copy a blob to a file, atomically, after checking its hash.

        Raises:
            BlobLostError: the blob does not exist, or its hash is not its name.
        """
        partial = to.with_name(f".{to.name}.part")
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as file:
                for chunk in self.read(tenant_id, sha256):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise BlobLostError(f"blob {sha256} is damaged in the artifact store")
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
                            tenant_id=name[1], sha256=name[2], modified_at=entry["last_modified"]
                        )

    def modified_at(self, tenant_id: str, sha256: str) -> datetime | None:
        """Return when a blob was last stored; None if it does not exist."""
        with _typed(f"look at {sha256}"):
            try:
                return obstore.head(self._store, _name(tenant_id, sha256))["last_modified"]
            except FileNotFoundError:
                return None

    def delete(self, tenant_id: str, sha256: str) -> None:
        """Delete a blob; do nothing if it does not exist."""
        with _typed(f"delete {sha256}"), suppress(FileNotFoundError):
            obstore.delete(self._store, _name(tenant_id, sha256))

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


def _range(start: int, end: int | None) -> tuple[int, int] | OffsetRange:
    return {"offset": start} if end is None else (start, end)


def _chunks(stream: Iterable[object], sha256: str) -> Iterator[bytes]:
    with _typed(f"read {sha256}"):
        for chunk in stream:
            yield bytes(chunk)  # type: ignore[call-overload]


@contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except (ObstoreError, OSError) as error:
        raise ArtifactStorageError(
            f"the artifact store cannot {what}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
