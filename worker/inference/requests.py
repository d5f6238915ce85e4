"""Shared by all requests to the inference process: token check, body parsing, problem responses."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from anyio import to_thread
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from store.errors import MEDIA_TYPE, ProblemError

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.requests import Request

_LARGE_BYTES = 1 << 14  # short inputs, too: validating 256 of them takes ten milliseconds
_Order = TypeVar("_Order", bound=BaseModel)


def check_token(request: Request, *, token: SecretStr | None) -> None:
    """Check a request's token, if one is required.

    Raises:
        ProblemError: 401 ``unauthorized``.
    """
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value().encode()
    is_same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), expected)
    if scheme.lower() != "bearer" or not is_same:
        raise ProblemError(
            "unauthorized",
            status=HTTPStatus.UNAUTHORIZED,
            detail="send the token of HIFI_INFER_TOKEN as Authorization: Bearer",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(request: Request, model: type[_Order], *, max_bytes: int) -> _Order:
    """Read and validate the body of a request.

    Raises:
        ProblemError: it is too large, not JSON, or does not fit the model.
    """
    pieces, size = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise ProblemError(
                "body_too_large",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                detail=f"the body has more than {max_bytes} bytes",
            )
    content = b"".join(pieces)
    try:
        if size > _LARGE_BYTES:  # in a thread: it would block the event loop
            return await to_thread.run_sync(model.model_validate_json, content)
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise ProblemError(
            "invalid_request",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"{param or 'the body'}: {first['msg']}",
            param=param,
        ) from error


def problem_response(error: ProblemError) -> Response:
    """Return a problem as a response."""
    return Response(
        error.to_json(), status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE
    )
