"""The job spec: its fields and their limits, validated once, at admission."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    AliasGenerator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
)
from pydantic_core import PydanticKnownError
from pydantic_core.core_schema import CoreSchema, no_info_plain_validator_function

from hifi.data.classes.weights import check_class_weights
from hifi.data.presets import PRESET_WORDS, Preset, fill_from_preset
from hifi.data.settings import Hyperparameters, RunSettings, Scoring, declared
from hifi.data.spec import LABEL_FIELDS, SPLITS, named_columns
from hifi.data.task_types import (
    MOST_CHOICES,
    MOST_LABEL_COLUMNS,
    PLANNED,
    metric_names,
    task_types,
)
from hifi.data.training_defaults import AUTO, MOST_RATE, check_learning_rate
from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hifi.data.run_warnings import RunWarning

NO_NUL = r"^[^\x00]*$"  # Postgres cannot store NUL


@dataclass(frozen=True)
class _OneOf:
    """A string out of a list that is read at each use, because task types can be registered.

    Attributes:
        names: the values to choose from.
        others: values that no list offers; a later check refuses them with its own reason.
    """

    names: Callable[[], tuple[str, ...]]
    others: tuple[str, ...] = ()

    def check(self, value: object) -> object:
        names = self.names()
        if value not in names and value not in self.others:
            first, last = ", ".join(map(repr, names[:-1])), names[-1]
            raise PydanticKnownError("literal_error", {"expected": f"{first} or {last!r}"})
        return value

    def __get_pydantic_core_schema__(self, *_: object) -> CoreSchema:
        return no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, *_: object) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names())}


TaskType = Annotated[str, _OneOf(lambda: tuple(each.name for each in task_types()), PLANNED)]
Metric = Annotated[str, _OneOf(metric_names)]
_FIELDS = {
    "model": "model",
    **dict.fromkeys(SPLITS, "dataset"),
    "task": "task.type",
}
Text = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=NO_NUL)]

_TEXT = TypeAdapter(Text)
_Fields = TypeVar("_Fields", bound=BaseModel)
_MOST_STRIDE = 1_000_000  # longer than any window
_MOST_WEIGHTS = 100  # a spec is stored with each job; "balanced" names no labels


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Convert a refusal of the library, so that it names the field, not alternatives of it."""
    try:
        yield
    except InvalidArgumentError as error:
        raise ValueError(error.limit) from error


def _check_rate(value: object) -> object:
    """Check a learning rate as the library does, and the limit of a server.

    Raises:
        ValueError: it is neither ``auto`` nor a number that is small enough.
    """
    with _as_value_error():
        rate = check_learning_rate(value)
    if rate != AUTO and rate > MOST_RATE:
        raise ValueError(f"a number above 0 and at most {MOST_RATE}, or {AUTO!r}")
    return rate


def _check_weights(value: object) -> object:
    """Check class weights as the library does.

    Raises:
        ValueError: they cannot be used, or not be stored.
    """
    if value is None:
        return None
    with _as_value_error():
        weights = check_class_weights(value)
    if isinstance(weights, str):
        return weights
    if len(weights) > _MOST_WEIGHTS:
        raise ValueError(f"{len(weights)} labels have weights: at most {_MOST_WEIGHTS} may")
    for label in weights:
        _TEXT.validate_python(label)
    return weights


LearningRate = Annotated[
    Any,
    PlainValidator(
        _check_rate,
        json_schema_input_type=Annotated[float, Field(gt=0, le=MOST_RATE)] | Literal["auto"],
    ),
]
_Weights = Annotated[
    dict[Text, Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=_MOST_WEIGHTS)
]
ClassWeights = Annotated[
    Any,
    PlainValidator(_check_weights, json_schema_input_type=Literal["balanced"] | _Weights | None),
]


def _add_words(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Describe the settings among a model's fields by their declared help texts."""
    kinds: tuple[type[RunSettings], ...] = (Scoring, Hyperparameters)
    for kind in kinds:
        if issubclass(model, kind):
            for setting in declared(kind).values():
                schema["properties"][setting.names[0]]["description"] = setting.help


class _Spec(BaseModel, frozen=True):
    """Exact types only, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_add_words
    )


class TaskFields(_Spec, frozen=True):
    """The task; missing fields are inferred from the data's columns."""

    type: TaskType | None = None
    text: (
        Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1, max_length=2)] | None
    ) = None
    label: (
        Text
        | Annotated[
            tuple[Text, ...], Field(strict=False, min_length=1, max_length=MOST_LABEL_COLUMNS)
        ]
        | None
    ) = None
    image: Text | None = None
    tokens: Text | None = None
    tags: Text | None = None
    spans: Text | None = None
    question: Text | None = None
    context: Text | None = None
    choices: (
        Text
        | Annotated[tuple[Text, ...], Field(strict=False, min_length=1, max_length=MOST_CHOICES)]
        | None
    ) = None
    answers: Text | None = None
    metric: Metric | None = None
    threshold: (
        Annotated[
            float,
            Field(
                gt=0,
                lt=1,
                description="of a multi-label task: the probability from which on an input has a "
                "label; default: the best one on the validation split",
            ),
        ]
        | None
    ) = None
    stride: (
        Annotated[
            int,
            Field(
                ge=0,
                le=_MOST_STRIDE,
                description="of a question-answering task: tokens that two windows of a long "
                "context share, at most half of those that a window has; default: a quarter",
            ),
        ]
        | None
    ) = None

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label column, or several."""
        return tuple(chain.from_iterable(named_columns(dict(self), LABEL_FIELDS).values()))


class TrainingFields(_Spec, Hyperparameters, frozen=True):
    """Hyperparameters, within the limits of a server."""

    learning_rate: LearningRate = Hyperparameters.learning_rate
    class_weights: ClassWeights = Hyperparameters.class_weights


class HubDataset(_Spec, frozen=True):
    """A data set of the hub, if the server allows it."""

    hub: Text
    config: Text | None = None
    revision: Text | None = None


def _spellings(name: str) -> str | AliasChoices:
    setting = declared(Scoring).get(name)
    return name if setting is None else AliasChoices(*setting.names)


def _spelling(name: str) -> str:
    return declared(Scoring)[name].names[0] if name in declared(Scoring) else name


class _Subject:
    """The fields of a job spec that come before the settings of scoring, wherever it is shown."""

    model: Text
    dataset: Text | HubDataset
    task: TaskFields = TaskFields()


class JobSpec(_Spec, Scoring, _Subject, frozen=True):
    """One requested fine-tune; the settings of head scoring are at its top level."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=_spellings, serialization_alias=_spelling),
        serialize_by_alias=True,
    )

    training: TrainingFields = TrainingFields()
    preset: Annotated[Preset | None, Field(description=PRESET_WORDS)] = None
    name: Annotated[str, StringConstraints(max_length=128, pattern=NO_NUL)] | None = None
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)],
        Annotated[str, StringConstraints(max_length=512, pattern=NO_NUL)],
    ] = Field(default_factory=dict, max_length=16)

    def filled(self) -> Self:
        """Return the spec with the preset's values in the place of those that are left open."""
        training = _filled(self.training, preset=self.preset)
        return _filled(self, preset=self.preset).model_copy(update={"training": training})


def _filled(fields: _Fields, *, preset: str | None) -> _Fields:
    values = {name: getattr(fields, name) for name in type(fields).model_fields}
    return fields.model_copy(update=fill_from_preset(values, preset=preset))


def spec_field(argument: str) -> str | None:
    """Return the job spec's field for an argument of ``finetune``."""
    if argument in declared(Scoring):
        return declared(Scoring)[argument].names[0]
    if argument in declared(Hyperparameters):
        return f"training.{argument}"
    if argument in TaskFields.model_fields:
        return f"task.{argument}"
    return _FIELDS.get(argument)


def job_warning(warning: RunWarning) -> dict[str, Any]:
    """Return a warning as a job has it: plain JSON that names the field of the job spec."""
    param = None if warning.param is None else spec_field(warning.param)
    return {"code": warning.code, "message": warning.message, "param": param}
