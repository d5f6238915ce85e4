"""Refusals over HTTP, whichever process writes them: problem details (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_RETRIED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class ProblemError(Exception):
    """A request that is refused.

    Args:
        code: stable, snake_case; part of the contract.
        status: of the answer.
        detail: for people: what is wrong, with the value and the limit. It names no path of this
            machine: the gateway passes on what the inference process writes.
        param: the field of the request at fault, dotted; None where there is none.
        headers: of the answer.
        extra: further members of the problem document, plain JSON.

    Attributes:
        headers: of the answer; a refusal that may pass names the seconds until a retry.
    """

    def __init__(
        self,
        code: str,
        *,
        status: int,
        detail: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = int(status)
        self.detail = detail
        self.param = param
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        if self.status in _RETRIED:
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))

    def to_json(self, **members: Any) -> str:  # noqa: ANN401 - plain JSON
        """Write the problem details document.

        Args:
            members: further ones that the process adds to every problem.

        Returns:
            ASCII: half a surrogate pair that somebody sent must not keep the answer from being
            encoded.
        """
        document = {
            "type": f"urn:hifi:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "param": self.param,
            **members,
            **self.extra,
        }
        return json.dumps(document)
