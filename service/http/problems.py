"""Every error as ``application/problem+json`` (RFC 9457), with a code that programs can rely on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response

from store.database.connection import OUTAGES
from store.errors import MEDIA_TYPE, ProblemError, StoreError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

_SHOWN_ERRORS = 20
_SHOWN_CHARACTERS = 64

# What the store raises on purpose. A code that is missing here is no caller's doing.
_STATUS_BY_CODE = {
    "artifact_storage": HTTPStatus.SERVICE_UNAVAILABLE,
    "blob_lost": HTTPStatus.SERVICE_UNAVAILABLE,
    "conflict": HTTPStatus.CONFLICT,
    "dataset_in_use": HTTPStatus.CONFLICT,
    "idempotency_key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "illegal_transition": HTTPStatus.CONFLICT,
    "not_found": HTTPStatus.NOT_FOUND,
    "quota_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
}
# Where pydantic's words say less than they could; `given` is the length of what was sent.
_REASONS = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is required",
    "string_too_short": "{given} characters, at least {min_length} wanted",
    "string_too_long": "{given} characters, at most {max_length} allowed",
    "too_short": "{given} entries, at least {min_length} wanted",
    "too_long": "{given} entries, at most {max_length} allowed",
}
_CODE_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}

_log = structlog.get_logger(__name__)


def invalid_request(detail: str, *, param: str | None = None) -> ProblemError:
    """Refuse a request of which a field is not what the contract says."""
    return invalid_fields([(param, detail)])


def invalid_fields(errors: Sequence[tuple[str | None, str]]) -> ProblemError:
    """Refuse a request of which some fields are not what the contract says.

    Args:
        errors: each field, dotted, and what is wrong with it; the answer speaks of the first,
            and lists them where there are several.
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


def problem_response(error: ProblemError, *, request_id: str | None) -> Response:
    """Write a problem as the answer to a request."""
    return Response(
        error.to_json(request_id=request_id),
        status_code=error.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


def internal_error() -> ProblemError:
    """Answer for a fault of our own; what it was stands in the log, under the request's id."""
    return ProblemError(
        "internal_error",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        detail="the server failed; its log says why, under this request_id",
    )


def install(app: FastAPI) -> None:
    """Make an application answer every error that it raises with a problem document."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(StoreError, _on_store_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for outage in OUTAGES:
        app.add_exception_handler(outage, _on_database_outage)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - what it is registered for
    return _answer(request, error)


async def _on_store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)  # noqa: S101 - what it is registered for
    status = _STATUS_BY_CODE.get(error.code)
    if status is None:
        _log.error("unexpected_store_error", code=error.code, error=str(error))
        return _answer(request, internal_error())
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("artifact_store_failed", error=str(error))
    problem = ProblemError(error.code, status=status, detail=str(error), param=error.param)
    return _answer(request, problem)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    errors = [(dotted(entry["loc"][1:]), entry) for entry in error.errors()]
    problem = invalid_fields([(param, describe(entry, param)) for param, entry in errors])
    return _answer(request, problem)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    status = HTTPStatus(error.status_code)
    detail = str(error.detail)
    headers = dict(error.headers or {})
    if status is HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}"
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} does not answer {request.method}"
        headers["Allow"] = ", ".join(_allowed_methods(request))
    code = _CODE_BY_STATUS.get(status, status.phrase.lower().replace(" ", "_"))
    problem = ProblemError(code, status=status, detail=detail, headers=headers)
    return _answer(request, problem)


def _allowed_methods(request: Request) -> list[str]:
    """List what a path answers; Starlette knows the methods of one route of several."""
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


async def _on_database_outage(request: Request, error: Exception) -> Response:
    _log.error("database_unavailable", error=str(getattr(error, "orig", None) or error))
    problem = ProblemError(
        "unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the database does not answer; try again soon",
    )
    return _answer(request, problem)


def _answer(request: Request, error: ProblemError) -> Response:
    return problem_response(error, request_id=getattr(request.state, "request_id", None))


def dotted(location: Iterable[str | int]) -> str | None:
    """Write where in a request a field is: ``training.epochs``, ``task.text.1``."""
    return ".".join(map(str, location)) or None


def describe(entry: Mapping[str, Any], param: str | None) -> str:
    """Say what is wrong with a field: mostly pydantic's words, and the value where it is short."""
    value = entry.get("input")
    if entry["type"] in _REASONS:
        given = len(value) if isinstance(value, Sized) else "too few or many"
        reason = _REASONS[entry["type"]].format(**{**entry.get("ctx", {}), "given": given})
    else:
        said = str(entry["msg"]).removeprefix("Value error, ")
        reason = f"{said[:1].lower()}{said[1:]}{_show(value)}"
    return f"{param}: {reason}" if param else reason


def _show(value: object) -> str:
    """Quote a short scalar; a number of a million digits is none."""
    if isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() <= 64):
        return f", not {value!r}"
    if isinstance(value, str) and len(value) <= _SHOWN_CHARACTERS:
        return f", not {value!r}"
    return ""
