"""Error responses: ``application/problem+json`` (RFC 9457) with stable codes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence, Sized
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from store.database.connection import OUTAGES
from store.errors import (
    MEDIA_TYPE,
    ArtifactStorageError,
    ProblemError,
    SchemaError,
    SpaceExceededError,
    StoreError,
)

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

_SHOWN_ERRORS = 20
SHOWN_CHARACTERS = 64  # of a caller's text, in an error

# The store's errors that a caller can cause or must know of; any other code is a 500.
_STATUS_BY_CODE = {
    "artifact_storage": HTTPStatus.SERVICE_UNAVAILABLE,
    "blob_lost": HTTPStatus.SERVICE_UNAVAILABLE,
    "conflict": HTTPStatus.CONFLICT,
    "dataset_in_use": HTTPStatus.CONFLICT,
    "dataset_ambiguous": HTTPStatus.CONFLICT,
    "idempotency_key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "illegal_transition": HTTPStatus.CONFLICT,
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "key_invalid": HTTPStatus.CONFLICT,
    "not_found": HTTPStatus.NOT_FOUND,
    "own_tenant": HTTPStatus.CONFLICT,
    "quota_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "tables_version": HTTPStatus.SERVICE_UNAVAILABLE,
}
# Replacements for pydantic's messages; `given` is the length of the received value.
_REASONS = {
    "extra_forbidden": "unknown field",
    "missing": "this field is required",
    "string_too_short": "{given} characters, at least {min_length} required",
    "string_too_long": "{given} characters, at most {max_length} allowed",
    "too_short": "{given} entries, at least {min_length} required",
    "too_long": "{given} entries, at most {max_length} allowed",
}

_log = structlog.get_logger(__name__)


def invalid_request(detail: str, *, param: str | None = None) -> ProblemError:
    """Return the 422 for an invalid field."""
    return invalid_fields([(param, detail)])


def invalid_fields(errors: Sequence[tuple[str | None, str]]) -> ProblemError:
    """Return the 422 for one or more invalid fields.

    Args:
        errors: (dotted field, reason) pairs. The first becomes ``param`` and ``detail``; several
            are also listed in ``errors``.
    """
    param, detail = errors[0]
    listed = [{"param": name, "detail": reason} for name, reason in errors[:_SHOWN_ERRORS]]
    return ProblemError(
        "invalid_request",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail=detail,
        param=param,
        extra={"errors": listed} if len(listed) > 1 else None,
    )


def unprocessable(code: str, detail: str, *, param: str) -> ProblemError:
    """Return a 422 with a code that is more specific than ``invalid_request``."""
    return ProblemError(code, status=HTTPStatus.UNPROCESSABLE_ENTITY, detail=detail, param=param)


def problem_response(error: ProblemError, *, request_id: str | None) -> Response:
    """Return the HTTP response for a problem."""
    return Response(
        error.to_json(request_id=request_id),
        status_code=error.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


def internal_error() -> ProblemError:
    """Return the 500 for an unexpected error; the log has the details under the request id."""
    return ProblemError(
        "internal_error",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        detail="internal error; the server's log has the details under this request_id",
    )


def install(app: FastAPI) -> None:
    """Register a handler that turns every error into a problem document."""
    for kind in (ProblemError, StoreError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    for failure in (DBAPIError, *OUTAGES):
        app.add_exception_handler(failure, _answer_failed_query)


async def _answer(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", None)
    return problem_response(_problem(request, error), request_id=request_id)


async def _answer_failed_query(request: Request, error: Exception) -> Response:
    """Answer for a failed query: the tables may have been changed, or the database be away.

    SQLite reports a missing column as it reports an unreadable file.
    """
    is_outage = isinstance(error, OUTAGES)
    if not is_outage or isinstance(getattr(error, "orig", None), sqlite3.Error):
        try:
            await request.state.tables.admit_after_error()
        except SchemaError as changed:
            return await _answer(request, changed)
    if not is_outage:
        raise error
    return await _answer(request, error)


def _problem(request: Request, error: Exception) -> ProblemError:
    match error:
        case ProblemError():
            return error
        case StoreError():
            return _store_problem(error)
        case RequestValidationError():
            errors = [(dotted(entry["loc"][1:]), entry) for entry in error.errors()]
            return invalid_fields([(param, describe(entry, param)) for param, entry in errors])
        case HTTPException():
            return _http_problem(request, error)
    _log.error("database_unavailable", error=str(getattr(error, "orig", None) or error))
    return ProblemError(
        "unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the database is unavailable; retry later",
    )


def _store_problem(error: StoreError) -> ProblemError:
    status = _STATUS_BY_CODE.get(error.code)
    if isinstance(error, SpaceExceededError):
        status = HTTPStatus.FORBIDDEN
    if status is None:
        _log.error("unexpected_store_error", code=error.code, error=str(error))
        return internal_error()
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request_refused", code=error.code, error=str(error))
    detail = error.detail if isinstance(error, ArtifactStorageError) else str(error)
    return ProblemError(error.code, status=status, detail=detail, param=error.param)


def _http_problem(request: Request, error: HTTPException) -> ProblemError:
    status = HTTPStatus(error.status_code)
    detail = str(error.detail)
    headers = dict(error.headers or {})
    if status is HTTPStatus.NOT_FOUND:
        detail = f"no such path: {request.url.path}"
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} does not support {request.method}"
        headers["Allow"] = ", ".join(_allowed_methods(request))
    code = status.phrase.lower().replace(" ", "_")
    return ProblemError(code, status=status, detail=detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return all methods of a path; Starlette's error names those of only one route."""
    path = request.scope["path"]
    routes = iter_route_contexts(request.app.routes)
    return sorted(
        {
            method
            for route in routes
            if route.path_regex.match(path)
            for method in route.methods or ()
        }
    )


def dotted(location: Iterable[str | int]) -> str | None:
    """Return a field's path with dots: ``training.epochs``, ``task.text.1``."""
    return ".".join(map(str, location)) or None


def describe(entry: Mapping[str, Any], param: str | None) -> str:
    """Describe a pydantic error, with the value if it is short."""
    value = entry.get("input")
    if entry["type"] in _REASONS:
        given = len(value) if isinstance(value, Sized) else "too few or too many"
        reason = _REASONS[entry["type"]].format(**{**entry.get("ctx", {}), "given": given})
    else:
        message = str(entry["msg"]).removeprefix("Value error, ")
        reason = f"{message[:1].lower()}{message[1:]}{_show(value)}"
    return f"{param}: {reason}" if param else reason


def _show(value: object) -> str:
    """Quote a short scalar; integers of more than 64 bits are left out."""
    if isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() <= 64):
        return f", not {value!r}"
    if isinstance(value, str) and len(value) <= SHOWN_CHARACTERS:
        return f", not {value!r}"
    return ""
