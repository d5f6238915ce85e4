"""The form of every refusal, whichever process writes it: problem details (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
RETRIED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def problem_document(code: str, *, status: int, detail: str, param: str | None) -> dict[str, Any]:
    """Write a problem details document.

    Args:
        code: stable, snake_case.
        status: of the answer.
        detail: for people.
        param: the field of the request at fault, dotted; None where there is none.
    """
    return {
        "type": f"urn:hifi:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": int(status),
        "detail": detail,
        "code": code,
        "param": param,
    }
