"""Refusals as ``application/problem+json`` (RFC 9457), as the gateway writes them too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from store.problem_details import MEDIA_TYPE, RETRIED, RETRY_SECONDS, problem_document


class ProblemError(Exception):
    """A request that is not fulfilled.

    Args:
        code: stable, snake_case.
        status: of the answer.
        detail: for people; the gateway may pass it on, so that it names no path of this machine.
        param: the field of the request at fault.
        headers: of the answer.
    """

    def __init__(
        self,
        code: str,
        *,
        status: HTTPStatus,
        detail: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.detail = detail
        self.param = param
        self.headers = dict(headers or {})


def problem_response(error: ProblemError) -> Response:
    """Write a problem as an answer; what may go better later says when."""
    document = problem_document(
        error.code, status=error.status, detail=error.detail, param=error.param
    )
    retry = {"Retry-After": str(RETRY_SECONDS)} if error.status in RETRIED else {}
    return Response(
        json.dumps(document),
        status_code=int(error.status),
        headers={**retry, **error.headers},
        media_type=MEDIA_TYPE,
    )
