"""The contract between gateway and inference process: orders and their answers.

The inference process validates everything that it reads; nothing in an order can be a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    create_model,
    model_validator,
)
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from hifi.data.formats.limits import MAX_CHARACTERS
from hifi.data.task_types import MOST_CHOICES, TaskType, request_fields, task_types

if TYPE_CHECKING:
    from store.tables import Artifact, Job

MAX_INPUTS = 256
MAX_SECONDS = 300.0  # the longest timeout of a request
_CHUNK_BYTES = 64 << 10

_Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
# The name of a folder, or of a model on the hub with its owner.
_Model = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$", max_length=200),
]
_FIELDS: dict[str, Any] = {  # of an input, by their kind
    "text": Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)],
    "image": str,
    "words": Annotated[list[str], Field(max_length=MAX_CHARACTERS)],
    "choices": Annotated[list[str], Field(max_length=MOST_CHOICES)],
}
_EXACT = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Order(BaseModel):
    model_config = _EXACT

    def to_json(self) -> bytes:
        """Return the order as JSON, without a copy of it as a string."""
        return TypeAdapter(type(self)).dump_json(self)


class DeltaOrder(_Order):
    """A head delta and its backbone; the body of ``POST /merged``.

    Attributes:
        tenant: the owner of the delta's blob.
        job: the job that made it; for the logs.
        model: the backbone's id, or with ``revision`` a hub id.
        revision: the commit to which a hub id was pinned.
        sha256: of the delta in float32.
    """

    tenant: _Identifier
    job: _Identifier
    model: _Model
    revision: _Commit | None = None
    sha256: _Sha256

    @classmethod
    def of(cls, job: Job, delta: Artifact) -> Self:
        """Create the order for a job's head delta."""
        return cls(
            tenant=job.tenant_id,
            job=job.id,
            model=job.model,
            revision=job.revision,
            sha256=delta.sha256,
        )

    @property
    def backbone(self) -> tuple[str, str | None]:
        """The backbone: its model and revision."""
        return self.model, self.revision

    @property
    def key(self) -> str:
        """The head delta's tenant and content hash; equal for all jobs with equal deltas."""
        return f"{self.tenant}/{self.sha256}"


class _Input(_Order):
    """One input; the task types declare its fields."""


@cache
def _input_model(_: tuple[TaskType, ...]) -> type[_Input]:
    """Build the model of an input; the argument rebuilds it when a task type is registered."""
    fields: dict[str, Any] = {
        name: (_FIELDS[field.kind] | None, None) for name, field in request_fields().items()
    }
    return create_model("Input", __base__=_Input, **fields)


def _read_input(value: object) -> dict[str, Any]:
    return _input_model(task_types()).model_validate(value).model_dump(exclude_none=True)


# A dictionary, which is faster than a model: a request has up to 256 of them.
class Item(TypedDict):
    """One input, and the index of the order for its head delta."""

    __pydantic_config__ = _EXACT  # type: ignore[misc] # as pydantic documents it

    order: Annotated[int, Field(ge=0)]
    input: Annotated[dict[str, str | list[str]], PlainValidator(_read_input)]


_ITEM = TypeAdapter(Item)


class PredictionOrder(_Order):
    """Inputs to predict; the body of ``POST /predict``.

    Attributes:
        orders: the head deltas.
        items: the inputs.
        truncate: whether a text with too many tokens is cut; otherwise it gets an error.
        timeout_seconds: after this time, an item without an answer gets an error.
    """

    orders: Annotated[list[DeltaOrder], Field(min_length=1, max_length=MAX_INPUTS)]
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS)]
    truncate: bool
    timeout_seconds: Annotated[float, Field(gt=0.0, le=MAX_SECONDS)]

    @classmethod
    def of_checked(
        cls,
        orders: Sequence[DeltaOrder],
        items: Sequence[tuple[int, Mapping[str, Any]]],
        *,
        truncate: bool,
        timeout_seconds: float,
    ) -> Self:
        """Create an order from inputs that are already validated, without validating them again.

        An item is the index of its order, and the fields of its input.
        """
        return cls.model_construct(
            orders=list(orders),
            items=[{"order": order, "input": given} for order, given in items],
            truncate=truncate,
            timeout_seconds=timeout_seconds,
        )

    def json_chunks(self, *, seconds: float) -> Iterator[bytes]:
        """Yield the order as JSON, with another timeout; as a whole it would be held twice."""
        rest = self.model_copy(update={"items": [], "timeout_seconds": seconds})
        chunk = bytearray(TypeAdapter(type(self)).dump_json(rest, exclude={"items"}))
        chunk[-1:] = b',"items":'
        separator = b"["
        for item in self.items:
            chunk += separator + _ITEM.dump_json(item)
            separator = b","
            if len(chunk) >= _CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk) + b"]}"

    def part(self, orders: Sequence[int]) -> tuple[Self, list[int]]:
        """Return the part for some of the head deltas, and the indices of its items here."""
        numbers = {order: number for number, order in enumerate(orders)}
        places = [place for place, item in enumerate(self.items) if item["order"] in numbers]
        items = [
            (numbers[item["order"]], item["input"]) for item in map(self.items.__getitem__, places)
        ]
        part = self.of_checked(
            [self.orders[order] for order in orders],
            items,
            truncate=self.truncate,
            timeout_seconds=self.timeout_seconds,
        )
        return part, places

    @model_validator(mode="after")
    def _check_orders(self) -> Self:
        if any(item["order"] >= len(self.orders) for item in self.items):
            raise ValueError("an item refers to a missing order")
        return self


class ItemError(BaseModel):
    """The error of an item without an answer.

    Attributes:
        param: the field at fault, dotted, from the request's root; None if there is none.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None


class Outcomes(BaseModel):
    """The answer to a :class:`PredictionOrder`.

    Attributes:
        data: for each item, in order, the answer of its task type, or an ``error`` with the fields
            of :class:`ItemError`, whose ``param`` is dotted from the item's input.
    """

    model_config = ConfigDict(frozen=True)

    data: list[dict[str, Any]]
