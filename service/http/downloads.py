"""Serve stored files: completely, in part, or not at all if the caller already has them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Callable
from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from service.connections.protocol import AnswerBrokenOffError
from store.errors import ArtifactStorageError, ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

    from store.storage import Blob

TAR = "application/x-tar"
Opener = Callable[[int, int], AsyncIterator[bytes]]

_LONGEST_NAME = 100
_UNSAFE = re.compile(r'[/\\:*?"<>|%;]')
_RANGE = re.compile(r"bytes\s*=\s*(?:([0-9]+)\s*-\s*([0-9]*)|-\s*([0-9]+))\s*", re.IGNORECASE)
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DIGITS = 18  # of the largest number in a range; larger ones are beyond the end of any file


def file_name(name: str | None, *, fallback: str, suffix: str) -> str:
    """Return a file name for a job's name.

    Args:
        name: any text; characters that a file system, a shell or a reader could misread become
            ``_``, and invisible characters are removed.
        fallback: used if nothing is left of the name.
        suffix: appended, such as ``.tar``.
    """
    visible = (
        character
        for character in unicodedata.normalize("NFC", name or "")
        if not unicodedata.category(character).startswith("C")
    )
    safe = _UNSAFE.sub("_", "".join(visible))[:_LONGEST_NAME].strip(". ")
    return (safe or fallback) + suffix


def content_disposition(name: str) -> str:
    """Return the header that makes a browser save a file under a safe name (RFC 6266, RFC 8187)."""
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"


def requested_span(header: str | None, *, size: int) -> range | None:
    """Parse a ``Range`` header (RFC 9110, section 14).

    Args:
        header: as received.
        size: of the file, in bytes.

    Returns:
        The requested bytes; None to send the whole file: for no range, several ranges, or something
        that is not a range of bytes.

    Raises:
        ProblemError: 416, the range is outside the file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        span = range(max(size - _number(suffix), 0), size)
    else:
        span = range(_number(first), min(_number(last) + 1, size) if last else size)
        if last and _number(last) < _number(first):
            return None
    if not span:
        raise ProblemError(
            "range_not_satisfiable",
            status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            detail=f"the file has {size} bytes, and {header!r} is outside of them",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return span


def _number(digits: str) -> int:
    """Parse a number that may have too many digits for Python."""
    return int(digits) if len(digits.lstrip("0")) <= _DIGITS else 10**_DIGITS


def has_already(if_none_match: str | None, *, etag: str) -> bool:
    """Return whether ``If-None-Match`` has an entity tag, by weak comparison (RFC 9110)."""
    header = (if_none_match or "").strip()
    return header == "*" or etag in _ENTITY_TAG.findall(header)


async def answer_with_file(
    request: Request, blob: Blob, *, read: Opener, name: str, media_type: str
) -> Response:
    """Return the response to a GET or HEAD of a stored file.

    The entity tag is the file's hash, so a complete or partial copy that the caller has stays valid
    while the file is the same. No cache on the way may keep one.

    Args:
        request: ``Range``, ``If-Range`` and ``If-None-Match`` are honoured.
        blob: the file.
        read: opens the file from one byte to another (not included).
        name: the name under which to save it.
        media_type: of the file.

    Raises:
        ProblemError: 416, the range is outside the file.
        ArtifactStorageError: from ``read``, before the response has started.
    """
    etag = f'"{blob.sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if has_already(request.headers.get("if-none-match"), etag=etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Disposition"] = content_disposition(name)
    if request.method == HTTPMethod.HEAD:
        headers["Content-Length"] = str(blob.bytes)
        return Response(headers=headers, media_type=media_type)
    span, status = range(blob.bytes), HTTPStatus.OK
    # A caller with a partial copy of another file gets the whole file.
    if request.headers.get("if-range", etag).strip() == etag:
        part = requested_span(request.headers.get("range"), size=blob.bytes)
        if part is not None:
            span, status = part, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.bytes}"
    headers["Content-Length"] = str(len(span))
    chunks = read(span.start, span.stop)
    # Read the first bytes now: once the headers are sent, errors cannot be reported any more.
    first = await anext(chunks, b"")
    return StreamingResponse(
        _chain(first, chunks), status_code=status, headers=headers, media_type=media_type
    )


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a file.

    Raises:
        AnswerBrokenOffError: a later one cannot be read.
    """
    yield first
    try:
        async for chunk in rest:
            yield chunk
    except ArtifactStorageError as error:
        raise AnswerBrokenOffError(str(error)) from error
