"""Problems that are sent without the application, and the headers of all answers."""

from __future__ import annotations

import random
from http import HTTPStatus

from store.errors import MEDIA_TYPE, ProblemError

REQUEST_ID = "x-request-id"
# Answers hold a tenant's data: no cache may keep them and no browser may guess another type. What
# may be kept, such as the files of the pages, has its own Cache-Control.
CACHE_CONTROL = ("cache-control", "no-store")
CONTENT_TYPE_OPTIONS = ("x-content-type-options", "nosniff")


def new_request_id() -> str:
    """Return a random request id."""
    return f"{random.getrandbits(128):032x}"


def refusal(problem: ProblemError) -> bytes:
    """Return the whole answer to a request that never reaches the application."""
    request_id = new_request_id()
    content = problem.to_json(request_id=request_id).encode("ascii")
    status = HTTPStatus(problem.status)
    headers = (
        ("content-type", MEDIA_TYPE),
        ("content-length", str(len(content))),
        ("connection", "close"),
        (REQUEST_ID, request_id),
        CACHE_CONTROL,
        CONTENT_TYPE_OPTIONS,
        *problem.headers.items(),
    )
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{n}: {v}" for n, v in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
