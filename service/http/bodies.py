"""JSON bodies: parse them with strict JSON types, and describe them for the documentation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
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
        raw: the received bytes.
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


async def read_json(
    request: Request, model: type[Model], *, most_values: int = _MOST_VALUES
) -> JsonBody[Model]:
    """Read and validate a request's body; parse a large body in a thread.

    Args:
        request: its body must be unread.
        model: a strict pydantic model.
        most_values: the limit of values in a body of more than a few kilobytes.

    Raises:
        ProblemError: 415 ``unsupported_media_type``, 400 ``invalid_json``, or 422
            ``invalid_request`` with the invalid field.
    """
    raw = await request.body()
    if not raw:
        raise invalid_request("the request has no body: send a JSON object")
    _check_type(request.headers.get("content-type", ""))
    parse = partial(_parse, raw, model, most_values=most_values)
    return JsonBody(await in_thread_if_large(parse, size=len(raw)), raw)


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


def _parse(raw: bytes, model: type[Model], *, most_values: int) -> Model:
    if len(raw) > _UNCOUNTED_BYTES:
        _check_count(raw, most=most_values)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error, raw) from None


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


def _refusal(error: ValidationError, raw: bytes) -> ProblemError:
    if error.error_count() > _MOST_ERRORS:
        return invalid_request(f"the body's fields have {error.error_count()} errors")
    entries = error.errors(include_url=False)
    if entries[0]["type"] == "json_invalid":
        return ProblemError(
            "invalid_json", status=HTTPStatus.BAD_REQUEST, detail=f"the body: {entries[0]['msg']}"
        )
    document = from_json(raw)
    placed = [(_field(entry, document), entry) for entry in entries]
    # For a field of several allowed types, the deepest entry is for the intended type.
    placed.sort(key=lambda pair: -len(pair[0]))
    return invalid_fields(
        [(dotted(location), describe(entry, dotted(location))) for location, entry in placed]
    )


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
