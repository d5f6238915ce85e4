"""Predictions as callers see them: what they ask, item by item, and what each is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, StringConstraints

from store.orders import MAX_CHARACTERS, MAX_INPUTS, MAX_SECONDS, ItemError

# A request of whole items has five for each; there is room for what is wrong with some of them.
MAX_VALUES = 10_000

_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]


class _Body(BaseModel):
    """What a caller sends: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Answer(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(frozen=True)


class TextInput(_Body):
    """A text, or a pair of texts, for a job that was trained on such."""

    text: _Text
    text_pair: _Text | None = Field(default=None, description="of a pair: the second text")


class ImageInput(_Body):
    """An image."""

    image: str = Field(
        min_length=1, description="the file in Base64", json_schema_extra={"format": "byte"}
    )


def _one_of(*models: type[BaseModel]) -> list[JsonValue]:
    return [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]


class JobInput(_Body):
    """An input, and the job whose head delta it is for."""

    job: str = Field(description="its id")
    input: Any = Field(json_schema_extra={"anyOf": _one_of(TextInput, ImageInput)})


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
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(TextInput, ImageInput)
    )


class MixedPredictionRequest(_Options):
    """Inputs for jobs of the caller's, mixed freely."""

    inputs: list[Any] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra=_items(JobInput)
    )


class LabelPrediction(_Answer):
    """Which label an input gets."""

    index: int
    job: str
    label: str
    score: FiniteFloat
    scores: dict[str, FiniteFloat]


class ValuePrediction(_Answer):
    """Which number an input gets."""

    index: int
    job: str
    value: FiniteFloat


class FailedPrediction(_Answer):
    """An item without an answer; the others of its request have theirs."""

    index: int
    job: str | None
    error: ItemError


Prediction = LabelPrediction | ValuePrediction | FailedPrediction


class PredictionList(_Answer):
    """An answer for every item, in the order asked."""

    object: Literal["list"] = "list"
    data: list[Prediction]
