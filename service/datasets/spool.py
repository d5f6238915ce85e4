"""Receive multipart bodies: parts are written to files as they arrive, never held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import collapse_rfc2231_value
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.datasets.checking.exchange import UploadedFile
from service.http.problems import SHOWN_CHARACTERS, invalid_request
from store.errors import ArtifactStorageError, ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

_MEDIA_TYPE = b"multipart/form-data"
_CHUNK_BYTES = 1 << 20  # written to disk at a time
_MAX_FIELD_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class SpooledFile(UploadedFile):
    """A received file, and the hash of its content."""

    sha256: str


@dataclass(frozen=True)
class Form:
    """A multipart body: the content of each part, by the part's name."""

    files: dict[str, SpooledFile] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


async def receive_form(
    request: Request, *, folder: Path, files: Collection[str], fields: Collection[str]
) -> Form:
    """Write a request's multipart body into a folder, part by part.

    Args:
        request: its body must be unread.
        folder: an empty folder, which the caller removes.
        files: the names of the files that the form may have, each at most once.
        fields: likewise, of its text fields.

    Raises:
        ProblemError: 415 ``unsupported_media_type``, 400 ``invalid_multipart``, or 422
            ``invalid_request`` for a part that is not allowed.
        ArtifactStorageError: the disk is full.
        ClientDisconnect: the client has disconnected.
    """
    boundary = _boundary(request.headers.get("content-type"))
    reader = _Reader(boundary, folder=folder, files=files, fields=fields)
    try:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _CHUNK_BYTES:
                await run_in_threadpool(reader.feed, bytes(pending))
                pending.clear()
        return await run_in_threadpool(reader.finish, bytes(pending))
    finally:
        reader.close()


def _boundary(content_type: str | None) -> bytes:
    media_type, options = parse_options_header(content_type)
    if media_type.strip() != _MEDIA_TYPE:
        raise ProblemError(
            "unsupported_media_type",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            detail=f"send the files as {_MEDIA_TYPE.decode()}",
            param="Content-Type",
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _invalid_multipart("its Content-Type has no boundary")
    return boundary


class _Reader:
    """Parses a body in chunks of any size, with at most one file open."""

    def __init__(
        self, boundary: bytes, *, folder: Path, files: Collection[str], fields: Collection[str]
    ) -> None:
        self._folder = folder
        self._files = files
        self._fields = fields
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        # The current part: its name, its file name unless it is a field, its content and the hash.
        self._name = ""
        self._filename: str | None = None
        self._content: IO[bytes] = BytesIO()
        self._digest = hashlib.sha256()
        self._is_whole = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _invalid_multipart(str(error)) from error

    def feed(self, data: bytes) -> None:
        """Process a chunk."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid_multipart(str(error)) from error
        except OSError as error:
            raise ArtifactStorageError(f"cannot store the upload: {error.strerror}") from error

    def finish(self, data: bytes) -> Form:
        """Process the last chunk, and return the form."""
        self.feed(data)
        if not self._is_whole:
            raise _invalid_multipart("it ends before its last boundary")
        return self._form

    def close(self) -> None:
        """Close the current file, if any."""
        self._content.close()

    def _begin_part(self) -> None:
        self._headers = {}

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        parameters = _parameters(self._headers.get(b"content-disposition", b""))
        name = parameters.get("name", "")
        filename = parameters.get("filename")
        self._check_name(name, is_file=filename is not None)
        self._name = name
        self._filename = filename
        self._content = BytesIO() if filename is None else (self._folder / name).open("xb")
        self._digest = hashlib.sha256()

    def _check_name(self, name: str, *, is_file: bool) -> None:
        shown = name[:SHOWN_CHARACTERS]
        if name in self._form.files or name in self._form.fields:
            raise invalid_request(f"{shown} is given twice", param=shown)
        if name in self._files and not is_file:
            raise invalid_request(f"{shown} must be a file, with a file name", param=shown)
        if name not in (self._files if is_file else self._fields):
            known = ", ".join([*self._files, *self._fields])
            raise invalid_request(f"the form has no part {shown!r}: it has {known}", param=shown)

    def _add(self, data: bytes, start: int, end: int) -> None:
        piece = memoryview(data)[start:end]
        self._digest.update(piece)
        self._content.write(piece)
        if self._filename is None and self._content.tell() > _MAX_FIELD_BYTES:
            reason = f"{self._name} is longer than {_MAX_FIELD_BYTES} bytes"
            raise invalid_request(reason, param=self._name)

    def _end_part(self) -> None:
        name = self._name
        if self._filename is None:
            self._content.seek(0)
            try:
                self._form.fields[name] = self._content.read().decode()
            except UnicodeDecodeError:
                raise invalid_request(f"{name} is not UTF-8", param=name) from None
        else:
            self._form.files[name] = SpooledFile(
                path=self._folder / name,
                filename=self._filename,
                sha256=self._digest.hexdigest(),
            )
        self._content.close()

    def _end(self) -> None:
        self._is_whole = True


def _parameters(disposition: bytes) -> dict[str, str]:
    """Return the parameters of a Content-Disposition, decoded.

    Browsers and curl send a file's name as UTF-8 (RFC 7578). Other clients send it percent-encoded
    as ``filename*`` (RFC 5987), which takes precedence, or as encoded words (RFC 2047).
    """
    message = Message()
    message["Content-Disposition"] = disposition.decode("latin-1")
    parameters = message.get_params([], header="Content-Disposition")
    return {name.lower(): _decoded(value) for name, value in parameters}


def _decoded(value: str | tuple[str | None, str | None, str]) -> str:
    """Decode a parameter; one that cannot be decoded stays as it is."""
    if isinstance(value, tuple):
        try:
            return collapse_rfc2231_value(value)
        except ValueError:  # its character set is no name of one
            return value[-1]
    text = value.encode("latin-1").decode("utf-8", "replace")
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def _invalid_multipart(reason: str) -> ProblemError:
    return ProblemError(
        "invalid_multipart",
        status=HTTPStatus.BAD_REQUEST,
        detail=f"the body cannot be read as a multipart form: {reason}",
    )
