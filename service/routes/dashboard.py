"""The dashboard: a page of files that ship with the package; it calls the API as anybody would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.auth import public
from service.downloads import has_already

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but our own files runs or is shown, so that a name that somebody gave a job cannot.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    etag: str
    media_type: str


@cache
def _shipped() -> Mapping[str, _File]:
    """Read the page's files; no other one can be asked for."""
    return {
        entry.name: _File(
            content=content,
            etag=f'"{hashlib.sha256(content).hexdigest()}"',
            media_type=_MEDIA_TYPES[PurePath(entry.name).suffix],
        )
        for entry in files("service").joinpath("static").iterdir()
        for content in (entry.read_bytes(),)
    }


@router.get("/")
@public
def get_dashboard(request: Request) -> Response:
    """Show the page."""
    return _answer(request, "index.html")


@router.get("/static/{name}")
@public
def get_static(request: Request, name: str) -> Response:
    """Give a file of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = _shipped().get(name)
    if file is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",  # asked for again each time: the next version may be another
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if has_already(request.headers.get("if-none-match"), etag=file.etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
