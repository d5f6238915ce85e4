"""JSON bodies: parse them with strict JSON types, and describe them for the documentation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from service.http.problems import describe, dotted, invalid_fields, invalid_request
from service.http.waiting import in_thread_if_large
from store.errors import ProblemError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)
_JSON = "application/json"
# While a body is parsed and its faults are collected, no other request is answered: 16 MiB of empty
# lists take 2.5 s and 300 MiB; a mebibyte of zeros in place of two texts takes five seconds.
_UNCOUNTED_BYTES = 16 << 10
_LARGE_BYTES = 16 << 10
_MOST_VALUES = 1000  # in a larger body; a job spec has fewer than a hundred
# A string without its closing quote ends with the body, so that no byte is scanned twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_MARKS = (b",", b"[", b"{")  # every value follows one of these
_MOST_ERRORS = 100  # the most that are examined


@dataclass(frozen=True, slots=True)
class JsonBody(Generic[Model]):
    """A validated body.

    Attributes:
        value: the parsed model.
        raw: as it was received.
    """

    value: Model
    raw: bytes

    def sha256(self) -> str:
        """Hash the body in canonical form: sorted names, no white space, 1.0 as 1."""
        document = json.loads(self.raw, parse_float=_shortest)
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _shortest(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


async def read_json(request: Request, model: type[Model]) -> JsonBody[Model]:
    """Read and validate a request's body, as :func:`receive` and :func:`parse_json` do."""
    raw = await receive(request)
    return JsonBody(await parse_json(request, raw, model), raw)


async def parse_json(
    request: Request,
    raw: bytes,
    model: type[Model],
    *,
    most_values: int = _MOST_VALUES,
    keeps_surrogates: bool = False,
) -> Model:
    r"""Validate a received body; parse a large one in a thread.

    Args:
        request: has the media type.
        raw: its body.
        model: a strict pydantic model.
        most_values: the limit of values in a body of more than a few kilobytes.
        keeps_surrogates: whether a lone surrogate (``"\ud800"``) is left to the model, whose
            strings with a limit refuse it; otherwise such a body is not JSON.

    Raises:
        ProblemError: 415 ``unsupported_media_type``, 400 ``invalid_json``, or 422
            ``invalid_request`` with the invalid field.
    """
    if not raw:
        raise invalid_request("the request has no body: send a JSON object")
    _check_type(request.headers.get("content-type", ""))
    parse = partial(_parse, raw, model, most_values=most_values, keeps_surrogates=keeps_surrogates)
    return await in_thread_if_large(parse, size=len(raw))


async def receive(request: Request) -> bytes:
    """Receive a body; of large ones, which a slow client would keep in memory, only some at once.

    Raises:
        ProblemError: 429 ``too_many_requests``: the tenant is sending many large bodies.
    """
    received, size = BytesIO(), 0
    with ExitStack() as stack:
        async for chunk in request.stream():
            if size <= _LARGE_BYTES < size + len(chunk):
                share = request.state.gateway.shares.large_bodies
                stack.enter_context(share.hold(request.state.caller.tenant_id))
            size += received.write(chunk)
    return received.getvalue()  # not a copy; pydantic would make one of a bytearray


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[JsonBody[Model]]]:
    """Return a dependency that reads a request's body with :func:`read_json`."""

    async def read(request: Request) -> JsonBody[Model]:
        return await read_json(request, model)

    return read


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route's body; :mod:`service.openapi` adds the schema."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def _check_type(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise ProblemError(
            "unsupported_media_type",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            detail=f"the body must be JSON: send Content-Type: {_JSON}",
            param="Content-Type",
        )


def _parse(raw: bytes, model: type[Model], *, most_values: int, keeps_surrogates: bool) -> Model:
    if len(raw) > _UNCOUNTED_BYTES:
        _check_count(raw, most=most_values)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if not _is_json_error(error):
            raise _refusal(error, from_json(raw)) from None
        problem = _not_json(error)
    document = _load_with_surrogates(raw) if keeps_surrogates else None
    if document is None:
        raise problem
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _refusal(error, document) from None


def _is_json_error(error: ValidationError) -> bool:
    """Return whether the body is not JSON; then there is no other error."""
    if error.error_count() > 1:
        return False
    return error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"


def _not_json(error: ValidationError) -> ProblemError:
    detail = f"the body: {error.errors(include_url=False)[0]['msg']}"
    return ProblemError("invalid_json", status=HTTPStatus.BAD_REQUEST, detail=detail)


def _load_with_surrogates(raw: bytes) -> object:
    """Parse JSON that may have lone surrogates, which pydantic does not read; None if it is none.

    Only an escape can be a surrogate, as UTF-8 has none.
    """
    if b"\\u" not in raw:
        return None
    try:
        document: object = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    return document


def _check_count(raw: bytes, *, most: int) -> None:
    """Raise for an unparsed body with so many values that validation would take too long."""
    if _count_marks(raw, 0, len(raw)) <= most:
        return  # even if all of them are outside strings
    count = strings = end = 0
    for string in _STRING.finditer(raw):
        count += _count_marks(raw, end, string.start())
        end = string.end()
        strings += 1
        if max(count, strings // 2) > most:  # one of a name and a string is a value
            break
    else:
        count += _count_marks(raw, end, len(raw))
    if max(count, strings // 2) > most:
        raise invalid_request(f"the body has more than {most} values, which is the limit")


def _count_marks(raw: bytes, start: int, end: int) -> int:
    return sum(raw.count(mark, start, end) for mark in _MARKS)


def _refusal(error: ValidationError, document: object) -> ProblemError:
    if error.error_count() > _MOST_ERRORS:
        return invalid_request(f"the body's fields have {error.error_count()} errors")
    entries = error.errors(include_url=False)
    placed = [(_field(entry, document), entry) for entry in entries]
    # A field of several allowed types has an entry for each of them. The intended one is the
    # deepest, or else the one that does not object to the value's type.
    placed.sort(key=lambda place: (-len(place[0]), _is_of_type(place[1])))
    kept = [
        (dotted(field), describe(entry, dotted(field)))
        for number, (field, entry) in enumerate(placed)
        if not _is_of_type(entry)
        or not any(
            other[: len(field)] == field and (len(other) > len(field) or not _is_of_type(better))
            for other, better in placed[:number]
        )
    ]
    return invalid_fields(kept)


def _is_of_type(entry: ErrorDetails) -> bool:
    return entry["type"].endswith("_type")


def _field(entry: ErrorDetails, document: Any) -> list[str | int]:  # noqa: ANN401 - any JSON
    """Locate a field in the document: pydantic's location also contains branches of unions."""
    field: list[str | int] = []
    for part in entry["loc"]:
        is_index = isinstance(part, int) and isinstance(document, list) and part < len(document)
        if is_index or (isinstance(document, dict) and part in document):
            document = document[part]
            field.append(part)
    if entry["type"] == "missing":
        field.append(entry["loc"][-1])
    return field
