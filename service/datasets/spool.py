"""Receive multipart bodies: parts are written to files as they arrive, never held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.http.problems import invalid_request
from store.errors import ArtifactStorageError, ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

_MEDIA_TYPE = b"multipart/form-data"
_CHUNK_BYTES = 1 << 20  # written to disk at a time
_MAX_FIELD_BYTES = 1024
_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class SpooledFile:
    """A received file.

    Attributes:
        filename: the sender's name for it; never used as a path.
    """

    path: Path
    filename: str
    sha256: str


@dataclass(frozen=True)
class Form:
    """A multipart body: the content of each part, by the part's name."""

    files: dict[str, SpooledFile] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The names of the allowed parts of a form."""

    files: Collection[str]
    fields: Collection[str]


async def receive_form(request: Request, *, folder: Path, expected: Expected) -> Form:
    """Write a request's multipart body into a folder, part by part.

    Args:
        request: its body must be unread.
        folder: an empty folder, which the caller removes.
        expected: the allowed parts, each at most once.

    Raises:
        ProblemError: 415 ``unsupported_media_type``, 400 ``invalid_multipart``, or 422
            ``invalid_request`` for a part that is not allowed.
        ArtifactStorageError: the disk is full.
        ClientDisconnect: the client has disconnected.
    """
    boundary = _boundary(request.headers.get("content-type"))
    reader = _Reader(boundary, folder=folder, expected=expected)
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

    def __init__(self, boundary: bytes, *, folder: Path, expected: Expected) -> None:
        self._folder = folder
        self._expected = expected
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._part: _Part | None = None
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
        if self._part is not None:
            self._part.close()

    def _begin_part(self) -> None:
        self._headers = {}

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        header = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(header.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._check_name(name, is_file=filename is not None)
        if filename is None:
            self._part = _FieldPart(name, self._form)
        else:
            self._part = _FilePart(
                name,
                self._form,
                path=self._folder / name,
                filename=filename.decode("utf-8", "replace"),
            )

    def _check_name(self, name: str, *, is_file: bool) -> None:
        shown = name[:_SHOWN_CHARACTERS]
        if name in self._form.files or name in self._form.fields:
            raise invalid_request(f"{shown} is given twice", param=shown)
        if name in self._expected.files and not is_file:
            raise invalid_request(f"{shown} must be a file, with a file name", param=shown)
        if name not in (self._expected.files if is_file else self._expected.fields):
            known = ", ".join([*self._expected.files, *self._expected.fields])
            raise invalid_request(f"the form has no part {shown!r}: it has {known}", param=shown)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part.add(memoryview(data)[start:end])

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.finish()
            self._part = None

    def _end(self) -> None:
        self._is_whole = True


class _FieldPart:
    """A text field that is being received."""

    def __init__(self, name: str, form: Form) -> None:
        self._name = name
        self._form = form
        self._text = bytearray()

    def add(self, data: memoryview) -> None:
        self._text += data
        if len(self._text) > _MAX_FIELD_BYTES:
            reason = f"{self._name} is longer than {_MAX_FIELD_BYTES} bytes"
            raise invalid_request(reason, param=self._name)

    def finish(self) -> None:
        try:
            self._form.fields[self._name] = self._text.decode()
        except UnicodeDecodeError:
            raise invalid_request(f"{self._name} is not UTF-8", param=self._name) from None

    def close(self) -> None:
        pass


class _FilePart:
    """A file that is being received."""

    def __init__(self, name: str, form: Form, *, path: Path, filename: str) -> None:
        self._name = name
        self._form = form
        self._path = path
        self._filename = filename
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = path.open("xb")

    def add(self, data: memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        self.close()
        self._form.files[self._name] = SpooledFile(
            path=self._path, filename=self._filename, sha256=self._digest.hexdigest()
        )

    def close(self) -> None:
        self._file.close()


_Part = _FieldPart | _FilePart


def _invalid_multipart(reason: str) -> ProblemError:
    return ProblemError(
        "invalid_multipart",
        status=HTTPStatus.BAD_REQUEST,
        detail=f"the body cannot be read as a multipart form: {reason}",
    )
