"""Error responses of routes, as the OpenAPI document describes them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.http.documents import Problem
from store.errors import MEDIA_TYPE

REFERENCE = "#/components/schemas/{model}"
_DESCRIPTIONS = {
    HTTPStatus.BAD_REQUEST: (
        "`host_not_allowed`, `invalid_http`, `invalid_json`, `invalid_multipart`"
    ),
    HTTPStatus.UNAUTHORIZED: "`unauthorized`: the key is missing or invalid",
    HTTPStatus.FORBIDDEN: "`origin_not_allowed`, `forbidden`, `quota_exceeded` of stored bytes",
    HTTPStatus.NOT_FOUND: "`not_found`: it does not exist, or belongs to another tenant",
    HTTPStatus.CONFLICT: (
        "its state does not allow this, see `code`; `idempotency_in_progress`: the first request "
        "with this key is still running"
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "`body_too_large`",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "`unsupported_media_type`",
    HTTPStatus.UNPROCESSABLE_ENTITY: (
        "`invalid_request` or a more specific code; `param` names the field"
    ),
    HTTPStatus.TOO_MANY_REQUESTS: (
        "`quota_exceeded`: the tenant's limit of waiting jobs is reached; `too_many_streams`, "
        "`too_many_uploads`, `too_many_downloads`, `too_many_merges`, `too_many_predictions`: the "
        "tenant's limit of open "
        "requests of this kind is reached; `too_many_connections`: that of your address; "
        "`too_many_attempts`: invalid keys came from your address; "
        "`too_many_requests`: the inference process is busy, or the tenant sends many large bodies"
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: "a dependency of the gateway is unavailable; see `code`",
}


def problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route for error statuses that only some routes have."""
    schema = {"$ref": REFERENCE.format(model=Problem.__name__)}
    return {
        int(status): {
            "description": _DESCRIPTIONS.get(status, status.phrase),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
