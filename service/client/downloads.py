"""Downloads that resume after broken connections; the file appears complete or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from service.client.errors import ApiError, DamagedDownloadError, LocalFileError

if TYPE_CHECKING:
    from service.client.connection import Connection, Fields

ATTEMPTS = 5  # consecutive ones without progress
_READ_SECONDS = 600.0  # the server may have to load a backbone first
_SHA256 = re.compile(r'"([0-9a-f]{64})"')

Watch = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Download:
    """A downloaded file."""

    path: Path
    bytes: int
    sha256: str


def download(
    connection: Connection,
    path: str,
    *,
    query: Fields | None = None,
    out: Path,
    on_progress: Watch | None = None,
) -> Download:
    """Download a file, and check its SHA-256 if the server sends one as ETag.

    An existing file is replaced at the end. ``on_progress`` is called with the bytes so far and
    the total, which is None if unknown.

    Raises:
        ApiError: the server refuses.
        UnreachableError: the connection broke too often.
        DamagedDownloadError: the file has another SHA-256.
        LocalFileError: the file cannot be written.
    """
    if out.is_dir():  # before the download, not after it
        raise LocalFileError(f"cannot write {out}: it is a folder; name a file in it")
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb+") as file:
            expected = _Transfer(connection, path, query=query, on_progress=on_progress).run(file)
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if expected is not None and found != expected:
                raise DamagedDownloadError(
                    f"the download of {out} is damaged: its sha256 is {found}, expected "
                    f"{expected}; try again"
                )
            size = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        part.replace(out)
    except OSError as error:
        raise LocalFileError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return Download(path=out, bytes=size, sha256=found)


@dataclass
class _Transfer:
    """The transfer of one file, over one or more connections."""

    connection: Connection
    path: str
    query: Fields | None
    on_progress: Watch | None
    etag: str | None = None

    def run(self, file: BufferedRandom) -> str | None:
        """Write the content to a file; return the SHA-256 in the server's ETag, if there is one."""
        failures = 0
        while True:
            before = file.tell()
            try:
                self._receive(file)
            except httpx2.TransportError as error:
                is_progress = file.tell() > before and self.etag is not None
                failures = 0 if is_progress else failures + 1
                if failures >= ATTEMPTS:
                    raise self.connection.unreachable(error) from error
                self.connection.sleep(min(0.2 * 2**failures, 5.0))
            except ApiError as error:
                failures += 1
                if failures >= ATTEMPTS or not error.is_busy:
                    raise
                self.connection.sleep(error.retry_after or 1.0)
            else:
                named = _SHA256.fullmatch(self.etag or "")
                return named[1] if named else None

    def _receive(self, file: BufferedRandom) -> None:
        """Request the missing part; if the file has changed, the server sends all of it."""
        headers = {"Accept-Encoding": "identity"}
        if self.etag is not None and file.tell():
            headers |= {"Range": f"bytes={file.tell()}-", "If-Range": self.etag}
        with self.connection.stream(
            self.path, query=self.query, headers=headers, timeout=_READ_SECONDS
        ) as response:
            is_rest = response.status_code == httpx2.codes.PARTIAL_CONTENT
            content_range = response.headers.get("content-range", "")
            if not (is_rest and content_range.startswith(f"bytes {file.tell()}-")):
                file.seek(0)
                file.truncate()
            etag = response.headers.get("etag")
            self.etag = None if etag is None or etag.startswith("W/") else etag
            length = response.headers.get("content-length")
            total = None if length is None else file.tell() + int(length)
            for chunk in response.iter_raw():
                file.write(chunk)
                if self.on_progress is not None:
                    self.on_progress(file.tell(), total)
