"""Stored files as answers: whole or in part, not at all where the caller has them already."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from store.problems import ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

    from store.storage import Blob

TAR = "application/x-tar"
Opener = Callable[[int, int], Iterator[bytes]]

_LONGEST_NAME = 100
_UNSAFE = re.compile(r'[/\\:*?"<>|%;]')
_RANGE = re.compile(r"bytes\s*=\s*(?:([0-9]+)\s*-\s*([0-9]*)|-\s*([0-9]+))\s*", re.IGNORECASE)
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DIGITS = 18  # of the largest number that a range may name; more is behind the end of any file


@dataclass(frozen=True)
class Span:
    """The bytes ``start`` to ``end`` (not included) of a file."""

    start: int
    end: int


def file_name(name: str | None, *, fallback: str, suffix: str) -> str:
    """Make a file's name out of what somebody called a job.

    Args:
        name: theirs, any text; what a file system, a shell or a reader could mistake becomes
            ``_``, and what cannot be seen goes.
        fallback: where nothing is left of it.
        suffix: what follows, such as ``.tar``.
    """
    visible = (
        letter
        for letter in unicodedata.normalize("NFC", name or "")
        if not unicodedata.category(letter).startswith("C")
    )
    safe = _UNSAFE.sub("_", "".join(visible))[:_LONGEST_NAME].strip(". ")
    return (safe or fallback) + suffix


def content_disposition(name: str) -> str:
    """Write the header that makes a browser save a file under a name (RFC 6266, RFC 8187).

    Args:
        name: from :func:`file_name`.
    """
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"


def requested_span(header: str | None, *, size: int) -> Span | None:
    """Read a ``Range`` header (RFC 9110, section 14).

    Args:
        header: as it came.
        size: of the file.

    Returns:
        The one range that it asks for; None where the whole file is to be sent: it asks for none,
        for several, or for what is no range of bytes.

    Raises:
        ProblemError: 416, the file has no such bytes.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        span = Span(max(size - _number(suffix), 0), size)
    else:
        span = Span(_number(first), min(_number(last) + 1, size) if last else size)
        if last and _number(last) < _number(first):
            return None
    if span.start >= span.end:
        raise ProblemError(
            "range_not_satisfiable",
            status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            detail=f"the file has {size} bytes, and {header!r} asks for none of them",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return span


def _number(digits: str) -> int:
    """Read a number that may be too long for Python to read."""
    return int(digits) if len(digits.lstrip("0")) <= _DIGITS else 10**_DIGITS


def has_already(if_none_match: str | None, *, etag: str) -> bool:
    """Tell whether ``If-None-Match`` names an entity tag; weakly, as RFC 9110 has it."""
    header = (if_none_match or "").strip()
    return header == "*" or etag in _ENTITY_TAG.findall(header)


def answer_with_file(
    request: Request, blob: Blob, *, read: Opener, name: str, media_type: str
) -> Response:
    """Answer a GET or HEAD with a stored file.

    Its entity tag is its hash, so a copy or the beginning of one is good for as long as the file
    is the same. A cache asks each time all the same: the job may be deleted, the key revoked.

    Args:
        request: with ``Range``, ``If-Range`` and ``If-None-Match``, or not.
        blob: the file.
        read: opens it from one byte to another (not included).
        name: under which it is to be saved.
        media_type: its own.

    Raises:
        ProblemError: 416, it has no such bytes.
        ArtifactStorageError: from ``read``, while there is still an answer to put it into.
    """
    etag = f'"{blob.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes"}
    if has_already(request.headers.get("if-none-match"), etag=etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Disposition"] = content_disposition(name)
    if request.method == HTTPMethod.HEAD:
        headers["Content-Length"] = str(blob.bytes)
        return Response(headers=headers, media_type=media_type)
    span, status = Span(0, blob.bytes), HTTPStatus.OK
    # A caller whose beginning is of another file gets all of this one.
    if request.headers.get("if-range", etag).strip() == etag:
        part = requested_span(request.headers.get("range"), size=blob.bytes)
        if part is not None:
            span, status = part, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{blob.bytes}"
    headers["Content-Length"] = str(span.end - span.start)
    chunks = read(span.start, span.end)
    # The first bytes now: after the headers no error has an answer any more.
    body = chain([next(chunks, b"")], chunks)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=media_type)
