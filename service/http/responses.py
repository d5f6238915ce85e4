"""How the API's document describes the refusals of a route."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.http.documents import Problem
from store.errors import MEDIA_TYPE

REFERENCE = "#/components/schemas/{model}"
_SAID = {
    HTTPStatus.BAD_REQUEST: "`host_not_allowed`, `invalid_json`, `invalid_multipart`",
    HTTPStatus.UNAUTHORIZED: "`unauthorized`: no key, or one that is not valid",
    HTTPStatus.FORBIDDEN: "`origin_not_allowed`, `forbidden`, `quota_exceeded` of stored bytes",
    HTTPStatus.NOT_FOUND: "`not_found`: not there, or another tenant's",
    HTTPStatus.CONFLICT: "not in the state that this needs; `code` says which",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "`body_too_large`",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "`unsupported_media_type`",
    HTTPStatus.UNPROCESSABLE_ENTITY: "`invalid_request` and finer codes; `param` names the field",
    HTTPStatus.TOO_MANY_REQUESTS: (
        "`quota_exceeded`: as many jobs wait as may; `too_many_streams`, `too_many_uploads`, "
        "`too_many_merges`, `too_many_predictions`: as many are open as one tenant may have; "
        "`too_many_requests`: the inference process has its hands full"
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: "something behind the gateway is away; `code` says what",
}


def problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe refusals for a route's ``responses``, beside those that every route has."""
    schema = {"$ref": REFERENCE.format(model=Problem.__name__)}
    return {
        int(status): {
            "description": _SAID.get(status, status.phrase),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
