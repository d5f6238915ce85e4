"""Parameters of requests outside the body: ids in the path, the query, the idempotency key."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import Header, Path, Query
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query as QueryInfo
from pydantic import BeforeValidator, PlainValidator

from service.http.auth import is_public
from service.http.problems import SHOWN_CHARACTERS, invalid_request
from service.paging import MAX_LIMIT
from store.errors import NotFoundError
from store.jobs.spec import NO_NUL

if TYPE_CHECKING:
    from starlette.requests import Request

_IDENTIFIER = re.compile(r"[a-z]+_[0-9a-z]{1,64}", re.ASCII)
_CURSOR = re.compile(r"[^\x00]{1,256}")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_KEY_HEADER = "Idempotency-Key"


def check_identifier(value: str, *, kind: str, param: str | None = None) -> str:
    """Return a well-formed id; for any other, raise as for a missing one, without a query.

    Raises:
        NotFoundError: the id is malformed.
    """
    if _IDENTIFIER.fullmatch(value) is None:
        raise NotFoundError(kind, value[:SHOWN_CHARACTERS], param=param)
    return value


def _identifier(kind: str, *, param: str | None = None) -> BeforeValidator:
    return BeforeValidator(partial(check_identifier, kind=kind, param=param))


def _cursor(value: str | None) -> str | None:
    if value is not None and _CURSOR.fullmatch(value) is None:
        shown = value[:SHOWN_CHARACTERS]
        raise NotFoundError("row to continue after", shown, param="after")
    return value


def _whole_number(value: object) -> object:
    """Accept ``20`` as a number, but not ``2e1``, ``+20`` or ``2_0``."""
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) is None:
        raise ValueError(f"must be a whole number from 1 to {MAX_LIMIT}")
    return value


def _truth(value: object) -> bool:
    """Accept only ``true`` and ``false``: a wrong guess would start a job."""
    if value in ("true", "false"):
        return value == "true"
    raise ValueError("must be true or false")


JobId = Annotated[str, Path(description="of a job"), _identifier("job")]
DatasetId = Annotated[str, Path(description="of a data set"), _identifier("dataset")]
PredictionId = Annotated[str, Path(description="of a batch prediction"), _identifier("prediction")]
TenantId = Annotated[str, Path(description="of a tenant"), _identifier("tenant")]
KeyId = Annotated[str, Path(description="of a key"), _identifier("key")]
TenantFilter = Annotated[
    str | None, Query(description="id of a tenant"), _identifier("tenant", param="tenant")
]
After = Annotated[
    str | None,
    Query(description="id of the last row of the previous page"),
    BeforeValidator(_cursor),
]
Name = Annotated[
    str | None, Query(description="list only those of this name", min_length=1, pattern=NO_NUL)
]
Limit = Annotated[
    int,
    Query(description="rows per page, fewer if they are long", ge=1, le=MAX_LIMIT),
    BeforeValidator(_whole_number),
]
DryRun = Annotated[
    bool,
    Query(description="only estimate the job's cost; nothing is stored"),
    PlainValidator(_truth, json_schema_input_type=bool),
]


def check_query(request: Request) -> None:
    """Raise for unknown and repeated parameters, so that misspelt ones are not ignored.

    Raises:
        ProblemError: 422 ``invalid_request``, with the parameter.
    """
    if not request.scope["query_string"] or is_public(request.scope["endpoint"]):
        return
    names = [name for name, _ in request.query_params.multi_items()]
    route = request.scope["route"]
    known = [
        field.alias
        for field in get_flat_params(route.dependant)
        if isinstance(field.field_info, QueryInfo)
    ]
    for name in names:
        shown = name[:SHOWN_CHARACTERS]
        if name not in known:
            listed = " and ".join(known) or "no parameters"
            raise invalid_request(f"{shown!r} is unknown: this route has {listed}", param=shown)
        if names.count(name) > 1:
            raise invalid_request(f"{shown} is given {names.count(name)} times", param=shown)


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=_KEY_HEADER,
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]*$",
        description="a request that is repeated with its key within 24 hours runs once and gets "
        "the same response",
    ),
]


def check_key(request: Request) -> None:
    """Raise for a request with two idempotency keys, which is ambiguous.

    Raises:
        ProblemError: 422 ``invalid_request``.
    """
    if len(request.headers.getlist(_KEY_HEADER)) > 1:
        raise invalid_request(f"{_KEY_HEADER} is given more than once", param=_KEY_HEADER)
