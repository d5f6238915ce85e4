"""Shared by the routes that serve stored files: their limit, and their description."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import CallerDep  # noqa: TC001 - as above
from service.http.responses import problems


async def hold_download(gateway: GatewayDep, caller: CallerDep) -> AsyncIterator[None]:
    """Count a download against its tenant's limit until it is sent or the caller disconnects.

    Raises:
        ProblemError: 429 ``too_many_downloads``.
    """
    with gateway.shares.downloads.hold(caller.tenant_id):
        yield


def file_answers(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """Describe the responses of a route that serves a stored file."""
    content = {"schema": {"type": "string", "format": "binary"}}
    file = {"content": dict.fromkeys(media_types, content)}
    return {
        HTTPStatus.OK: {"description": "The file", **file},
        HTTPStatus.PARTIAL_CONTENT: {"description": "The bytes that Range names", **file},
        HTTPStatus.NOT_MODIFIED: {"description": "If-None-Match names the current file"},
        **problems(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    }
