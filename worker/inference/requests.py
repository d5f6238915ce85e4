"""What all requests to the inference process share: the token, the body, the form of a refusal."""

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

_ASIDE_BYTES = 1 << 17
_Order = TypeVar("_Order", bound=BaseModel)


def check_token(request: Request, *, token: SecretStr | None) -> None:
    """Check that a request brings the token, where there is one.

    Raises:
        ProblemError: it does not.
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
            detail="this needs Authorization: Bearer with the token of HIFI_INFER_TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(request: Request, model: type[_Order], *, max_bytes: int) -> _Order:
    """Read the body of a request.

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
        if size > _ASIDE_BYTES:  # or everybody would wait for it
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
    """Write a problem as an answer."""
    return Response(
        error.to_json(), status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE
    )
