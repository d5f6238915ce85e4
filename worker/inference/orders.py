"""What the gateway asks for, checked at the door: nothing in it can be a path."""

from __future__ import annotations

import hmac
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from anyio import to_thread
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from hifi.data.task_types import TaskType, request_fields, task_types
from store.prediction_limits import MAX_INPUTS, MAX_LETTERS, MAX_SECONDS
from worker.inference.problems import ProblemError

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.requests import Request

    from worker.inference.backbones import BackboneName
    from worker.inference.tiers import DeltaKey

_ASIDE_BYTES = 1 << 17
_Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
_FIELDS: dict[str, Any] = {  # of an input, by their kind
    "text": Annotated[str, StringConstraints(max_length=MAX_LETTERS)],
    "image": str,
}
# The name of a folder, or of a model on the hub with its owner.
_Model = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$", max_length=200),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DeltaOrder(_Body):
    """Which head delta is meant, and on which backbone.

    Attributes:
        tenant: whose blob the delta is.
        job: that made it; for the logs.
        model: a backbone's id, or with ``revision`` a hub id.
        revision: the commit to which a hub id was pinned.
        sha256: of the delta's blob.
    """

    tenant: _Identifier
    job: _Identifier
    model: _Model
    revision: _Commit | None = None
    sha256: _Sha256

    @property
    def backbone(self) -> BackboneName:
        """Name the backbone."""
        return self.model, self.revision

    @property
    def key(self) -> DeltaKey:
        """Name the head delta by its tenant and content: under any job's id the same."""
        return f"{self.tenant}/{self.sha256}"


@cache
def _input_model(_: tuple[TaskType, ...]) -> type[BaseModel]:
    """Make the model of an input with any of the fields that these task types declare."""
    fields: dict[str, Any] = {
        name: (_FIELDS[field.kind] | None, None) for name, field in request_fields().items()
    }
    return create_model("Input", __base__=_Body, **fields)


def _read_input(value: object) -> dict[str, str]:
    """Read one input, as its caller wrote it."""
    return _input_model(task_types()).model_validate(value).model_dump(exclude_none=True)


class Item(_Body):
    """One input, and for which of the orders' head deltas it is."""

    order: Annotated[int, Field(ge=0)]
    input: Annotated[dict[str, str], PlainValidator(_read_input)]


class PredictionRequest(_Body):
    """What is to be predicted.

    Attributes:
        orders: the head deltas.
        items: the inputs.
        truncate: whether texts are cut as in training, or refused.
        timeout_seconds: after which what is not answered is given up.
    """

    orders: Annotated[list[DeltaOrder], Field(min_length=1, max_length=MAX_INPUTS)]
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS)]
    truncate: bool
    timeout_seconds: Annotated[float, Field(gt=0.0, le=MAX_SECONDS)]

    @model_validator(mode="after")
    def _check_orders(self) -> PredictionRequest:
        if any(item.order >= len(self.orders) for item in self.items):
            raise ValueError("an item is for an order that is not there")
        return self


_Wanted = TypeVar("_Wanted", bound=BaseModel)


async def read_body(request: Request, model: type[_Wanted], *, max_bytes: int) -> _Wanted:
    """Read the body of a request.

    Raises:
        ProblemError: it is too large, no JSON, or says something else than the model.
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
