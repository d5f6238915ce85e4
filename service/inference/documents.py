"""The JSON documents of predictions: requests, inputs and answers."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    StringConstraints,
    create_model,
)
from pydantic_core import PydanticCustomError

from hifi.data.formats.limits import MAX_CHARACTERS
from hifi.data.task_types import FEWEST_CHOICES, MOST_CHOICES, TaskType, task_types
from service.http.documents import Answer, Body
from store.orders import MAX_INPUTS, MAX_SECONDS, ItemError

# The longest list of words has one character in each; the rest is room for other items.
MAX_VALUES = MAX_CHARACTERS + 20_000


def _refuse_nul(text: str) -> str:
    """Refuse a NUL character, as in the data of a fine-tune: tokenizers do not read it."""
    if "\0" in text:
        raise ValueError("the text has a NUL character; remove it")
    return text


def _refuse_long(texts: list[str]) -> list[str]:
    """Refuse more characters than a text may have."""
    if sum(map(len, texts)) > MAX_CHARACTERS:
        message = "{given} characters in all texts of the list, at most {max_length} allowed"
        counts = {"given": sum(map(len, texts)), "max_length": MAX_CHARACTERS}
        raise PydanticCustomError("text_too_long", message, counts)
    return texts


_TEXT = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_CHARACTERS),
    AfterValidator(_refuse_nul),
]
_FIELDS: dict[str, Any] = {  # types of an input's fields, by kind
    "text": _TEXT,
    "words": Annotated[list[_TEXT], Field(min_length=1), FailFast(), AfterValidator(_refuse_long)],
    "choices": Annotated[
        list[_TEXT],
        Field(min_length=FEWEST_CHOICES, max_length=MOST_CHOICES),
        FailFast(),
        AfterValidator(_refuse_long),
    ],
    "image": Annotated[str, Field(min_length=1, json_schema_extra={"format": "byte"})],
}


class _Answer(Answer):
    """A response document without NaN and infinity."""

    model_config = ConfigDict(allow_inf_nan=False)


@cache
def input_models(types: tuple[TaskType, ...]) -> dict[str, type[BaseModel]]:
    """Return the input models of these task types, by the first field of each."""
    models: dict[str, type[BaseModel]] = {}
    for request in dict.fromkeys(request for each in types for request in each.requests):
        fields: dict[str, Any] = {}
        for field in request.fields:
            kind = _FIELDS[field.kind]
            if field.is_required:
                fields[field.name] = (kind, Field(description=field.words))
            else:
                fields[field.name] = (kind | None, Field(default=None, description=field.words))
        models[request.fields[0].name] = create_model(
            request.name, __base__=Body, __doc__=request.words, **fields
        )
    return models


INPUTS = tuple(input_models(task_types()).values())


def _one_of(*models: type[BaseModel]) -> list[JsonValue]:
    return [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]


class JobInput(Body):
    """An input, and the job whose head delta predicts it."""

    job: str = Field(description="the job's id")
    input: Any = Field(json_schema_extra={"anyOf": _one_of(*INPUTS)})


class SharedInput(Body):
    """An input for several jobs: layers that none of their deltas changes run once."""

    jobs: list[str] = Field(
        min_length=1, max_length=MAX_INPUTS, description="the jobs' ids, each once"
    )
    input: Any = Field(json_schema_extra={"anyOf": _one_of(*INPUTS)})


def _items(*models: type[BaseModel]) -> dict[str, JsonValue]:
    """Return the schema of a request's items; an invalid item does not fail the request."""
    anything: JsonValue = {"description": "Any other value: its answer is an error."}
    return {"items": {"anyOf": [*_one_of(*models), anything]}}


class _Options(Body):
    truncate: bool = Field(
        default=True,
        description="cut texts of too many tokens, as in training; false: answer with an error",
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = Field(
        default=None,
        description="time limit of the request; items that miss it get the error "
        "`deadline_exceeded`. Default: the server's setting.",
    )


class PredictionRequest(_Options):
    """Inputs for one job."""

    inputs: list[Any] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(*INPUTS)
    )


class MixedPredictionRequest(_Options):
    """Inputs for any of the caller's jobs, mixed freely; an input for n jobs counts as n."""

    inputs: list[Any] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(JobInput, SharedInput)
    )


class FailedPrediction(_Answer):
    """The error of one item; it does not affect the other items."""

    index: int
    job: str | None
    error: ItemError


@cache
def prediction_list(types: tuple[TaskType, ...]) -> type[BaseModel]:
    """Return the response model for these task types."""
    models: list[Any] = []
    for answer in dict.fromkeys(each.answer for each in types):
        fields: dict[str, Any] = {"index": (int, ...), "job": (str, ...)}
        for field in answer.fields:
            fields[field.name] = (field.type, Field(description=field.words))
        models.append(create_model(answer.name, __base__=_Answer, __doc__=answer.words, **fields))
    one: Any = reduce(or_, [*models, FailedPrediction])
    fields = {"index": (int, ...), "answers": (list[one], ...)}
    shared = create_model(
        "SharedPrediction",
        __base__=_Answer,
        __doc__="An answer of each job to one input.",
        **fields,
    )
    item: Any = one | shared
    fields = {"object": (Literal["list"], "list"), "data": (list[item], ...)}
    words = "An answer for each item, in the order of the request."
    return create_model("PredictionList", __base__=_Answer, __doc__=words, **fields)


PredictionList = prediction_list(task_types())
