"""What the gateway asks for, checked at the door: nothing in it can be a path."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from worker.inference.problems import ProblemError

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.requests import Request

_MAX_BYTES = 1 << 14

_Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
# The name of a folder, or of a model on the hub with its owner.
_Model = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$", max_length=200),
]


class MergeOrder(BaseModel):
    """Which head delta to merge into which backbone.

    Attributes:
        tenant: whose blob the delta is.
        job: that made it; for the logs.
        model: a backbone's id, or with ``revision`` a hub id.
        revision: the commit to which a hub id was pinned.
        sha256: of the delta's blob.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tenant: _Identifier
    job: _Identifier
    model: _Model
    revision: _Commit | None = None
    sha256: _Sha256


async def read_order(request: Request) -> MergeOrder:
    """Read the body of a request.

    Raises:
        ProblemError: it is too large, no JSON, or says something else than an order.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MAX_BYTES:
            raise ProblemError(
                "body_too_large",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                detail=f"the body has more than {_MAX_BYTES} bytes",
            )
    try:
        return MergeOrder.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise ProblemError(
            "invalid_request",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"{param or 'the body'}: {first['msg']}",
            param=param,
        ) from error


def check_token(request: Request, *, token: SecretStr | None) -> None:
    """Ask for the token, where there is one.

    Raises:
        ProblemError: the request does not bring it.
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
