"""The static files of the pages: those of this package, and Swagger UI from another package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.http.downloads import has_already

if TYPE_CHECKING:
    from starlette.requests import Request

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
# Only our own files may run or be displayed, so that a job's name cannot inject anything.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_IMAGES = "'self'"
_IMAGES_OF = {"docs.html": "'self' data:"}  # Swagger UI's icons are in its style sheet


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    etag: str
    media_type: str


@cache
def _shipped() -> Mapping[str, _File]:
    """Read all files; no other file can be requested."""
    swagger_ui = files("fastapi_offline").joinpath("static")
    shipped = [
        *files("service").joinpath("static").iterdir(),
        *map(swagger_ui.joinpath, _SWAGGER_UI),
    ]
    return {
        entry.name: _File(
            content=content,
            etag=f'"{hashlib.sha256(content).hexdigest()}"',
            media_type=_MEDIA_TYPES[PurePath(entry.name).suffix],
        )
        for entry in shipped
        for content in (entry.read_bytes(),)
    }


def answer_with_file(request: Request, name: str) -> Response:
    """Return the file of a name, or 304 if the caller already has it.

    Raises:
        HTTPException: 404, no file has that name.
    """
    file = _shipped().get(name)
    if file is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",  # revalidate each time: an upgrade may change the file
        "Content-Security-Policy": _POLICY.format(images=_IMAGES_OF.get(name, _IMAGES)),
        "Referrer-Policy": "no-referrer",
    }
    if has_already(request.headers.get("if-none-match"), etag=file.etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
