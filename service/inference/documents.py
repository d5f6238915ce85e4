"""Predictions as callers see them: what they ask, item by item, and what each is answered."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, create_model

from hifi.data.task_types import TaskType, task_types
from store.orders import MAX_CHARACTERS, MAX_INPUTS, MAX_SECONDS, ItemError

# A request of whole items has five for each; there is room for what is wrong with some of them.
MAX_VALUES = 10_000

_FIELDS: dict[str, Any] = {  # of an input, by their kind
    "text": Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)],
    "image": Annotated[str, Field(min_length=1, json_schema_extra={"format": "byte"})],
}


class _Body(BaseModel):
    """What a caller sends: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Answer(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


@cache
def input_models(types: tuple[TaskType, ...]) -> dict[str, type[BaseModel]]:
    """Make the models of the inputs of these task types, by the field that tells them apart."""
    models: dict[str, type[BaseModel]] = {}
    for request in dict.fromkeys(each.request for each in types):
        fields: dict[str, Any] = {}
        for field in request.fields:
            kind = _FIELDS[field.kind]
            if field.is_required:
                fields[field.name] = (kind, Field(description=field.words))
            else:
                fields[field.name] = (kind | None, Field(default=None, description=field.words))
        models[request.fields[0].name] = create_model(
            request.name, __base__=_Body, __doc__=request.words, **fields
        )
    return models


INPUTS = tuple(input_models(task_types()).values())


def _one_of(*models: type[BaseModel]) -> list[JsonValue]:
    return [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]


class JobInput(_Body):
    """An input, and the job whose head delta it is for."""

    job: str = Field(description="its id")
    input: Any = Field(json_schema_extra={"anyOf": _one_of(*INPUTS)})


def _items(*models: type[BaseModel]) -> dict[str, JsonValue]:
    """Describe the items of a request: each is looked at by itself, and may be anything."""
    anything: JsonValue = {
        "description": "Anything else: the item is answered with what is wrong with it."
    }
    return {"items": {"anyOf": [*_one_of(*models), anything]}}


class _Options(_Body):
    truncate: bool = Field(
        default=True,
        description="cut a text of too many tokens, as the training did; else it is refused",
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = Field(
        default=None,
        description="how long the answer may take; what is not answered by then is answered with "
        "`deadline_exceeded`. The server has a default.",
    )


class PredictionRequest(_Options):
    """Inputs for one job."""

    inputs: list[Any] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(*INPUTS)
    )


class MixedPredictionRequest(_Options):
    """Inputs for jobs of the caller's, mixed freely."""

    inputs: list[Any] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(JobInput)
    )


class FailedPrediction(_Answer):
    """An item without an answer; the others of its request have theirs."""

    index: int
    job: str | None
    error: ItemError


@cache
def prediction_list(types: tuple[TaskType, ...]) -> type[BaseModel]:
    """Make the model of the answers of these task types."""
    models: list[Any] = []
    for answer in dict.fromkeys(each.answer for each in types):
        fields: dict[str, Any] = {"index": (int, ...), "job": (str, ...)}
        for field in answer.fields:
            fields[field.name] = (field.type, Field(description=field.words))
        models.append(create_model(answer.name, __base__=_Answer, __doc__=answer.words, **fields))
    union: Any = reduce(or_, [*models, FailedPrediction])
    fields = {"object": (Literal["list"], "list"), "data": (list[union], ...)}
    words = "An answer for every item, in the order asked."
    return create_model("PredictionList", __base__=_Answer, __doc__=words, **fields)


PredictionList = prediction_list(task_types())
