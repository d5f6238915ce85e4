"""The task types, each declared once: what it reads, learns, measures and answers.

Training, the bank, the inference process, the job spec, the OpenAPI document, the command line and
the documentation ask here; nothing else lists task types. The torch part of a type (encoding, loss,
metrics, how logits become an answer) is the class that ``implementation`` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hifi.errors import TaskNotSupportedError

InputKind = Literal["text", "image"]
Use = Literal["text", "image", "label", "target"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a data set that a task reads for one purpose.

    Attributes:
        field: of a task spec, which names them: ``text``, ``image`` or ``label``.
        use: how they are read; it says which rows are refused.
        most: how many there may be.
        words: for the command line and the OpenAPI document.
    """

    field: str
    use: Use
    most: int = 1
    words: str


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """A field of an input to a prediction.

    Attributes:
        name: in the request.
        kind: a text, or an image file in Base64.
        is_required: whether every input has it.
        words: for the OpenAPI document.
    """

    name: str
    kind: InputKind
    is_required: bool = True
    words: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """An input of ``/predict``.

    Attributes:
        name: in the OpenAPI document; one name, one request.
        words: for the OpenAPI document.
        fields: a field for every input column, in the order of the columns. The first is required,
            and tells this request from others.
    """

    name: str
    words: str
    fields: tuple[RequestField, ...]


@dataclass(frozen=True, kw_only=True)
class AnswerField:
    """A field of the answer to a prediction.

    Attributes:
        name: in the answer.
        type: of its value, as pydantic reads it: ``str``, ``float``, ``dict[str, float]``, …
        words: for the OpenAPI document.
    """

    name: str
    type: Any
    words: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of ``/predict``.

    Attributes:
        name: in the OpenAPI document; one name, one answer.
        words: for the OpenAPI document.
        fields: what it holds; no two answers have the same field names.
    """

    name: str
    words: str
    fields: tuple[AnswerField, ...]


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """One kind of downstream task.

    Attributes:
        name: in job specs and head deltas.
        words: one line for people.
        implementation: its torch part, ``module:class``; imported when it is first used.
        input_kind: what a backbone must read.
        inputs: the input columns.
        label: the column of what is learnt.
        num_labels: logits in a row; None where there is one for each class that the training split
            names.
        logits: what has a row of logits: the whole ``sample``, ``[n, num_labels]``, or each
            ``token`` of it, ``[n, S, num_labels]``, of which those of the padding mean nothing.
        metrics: the default first; of each the greater is better.
        problem_type: as transformers' configurations name it; None where they have no name for it.
        request: an input of ``/predict``.
        answer: its answer.
    """

    name: str
    words: str
    implementation: str
    input_kind: InputKind
    inputs: Columns
    label: Columns
    num_labels: int | None
    logits: Literal["sample", "token"] = "sample"
    metrics: tuple[str, ...]
    problem_type: str | None
    request: Request
    answer: Answer

    @property
    def has_classes(self) -> bool:
        """Whether the training split names classes."""
        return self.num_labels is None

    @property
    def input_counts(self) -> range:
        """How many input columns a task may have: one for each required field at least."""
        return range(sum(field.is_required for field in self.request.fields), self.inputs.most + 1)


_TYPES: dict[str, TaskType] = {}
# Task types of the contract that are not built yet.
PLANNED = ("question-answering", "multiple-choice", "token-classification", "causal-lm")


def register(task_type: TaskType) -> TaskType:
    """Add a task type; a later one of the same name takes its place."""
    _TYPES[task_type.name] = task_type
    return task_type


def task_types() -> tuple[TaskType, ...]:
    """Return the task types that are built, in the order in which they were registered."""
    return tuple(_TYPES.values())


def find_task_type(name: str) -> TaskType:
    """Find a task type by its name.

    Raises:
        TaskNotSupportedError: no such type, or one that is not built yet.
    """
    task_type = _TYPES.get(name)
    if task_type is None:
        state = "is not built yet" if name in PLANNED else "is unknown"
        raise TaskNotSupportedError(f"task type {name!r} {state}; there are: {', '.join(_TYPES)}")
    return task_type


def metric_names() -> tuple[str, ...]:
    """Return the metrics of all task types, each once."""
    return tuple(dict.fromkeys(name for each in task_types() for name in each.metrics))


def request_fields() -> dict[str, RequestField]:
    """Return the fields that an input of ``/predict`` may have, by name."""
    return {field.name: field for each in task_types() for field in each.request.fields}


_TEXTS = Columns(field="text", use="text", most=2, words="one or two text columns")
_IMAGE = Columns(field="image", use="image", words="the column of images")
_CLASSES = Columns(field="label", use="label", words="the column of classes")
_NUMBERS = Columns(field="label", use="target", words="the column of numbers")
_CLASS_METRICS = ("accuracy", "f1", "matthews")
TEXT_INPUT = Request(
    name="TextInput",
    words="A text, or a pair of texts, for a job that was trained on such.",
    fields=(
        RequestField(name="text", kind="text"),
        RequestField(
            name="text_pair", kind="text", is_required=False, words="of a pair: the second text"
        ),
    ),
)
IMAGE_INPUT = Request(
    name="ImageInput",
    words="An image.",
    fields=(RequestField(name="image", kind="image", words="the file in Base64"),),
)
_LABEL_ANSWER = Answer(
    name="LabelPrediction",
    words="Which label an input gets.",
    fields=(
        AnswerField(name="label", type=str, words="the likeliest class"),
        AnswerField(name="score", type=float, words="its probability"),
        AnswerField(name="scores", type=dict[str, float], words="the probability of every class"),
    ),
)
_VALUE_ANSWER = Answer(
    name="ValuePrediction",
    words="Which number an input gets.",
    fields=(AnswerField(name="value", type=float, words="the number"),),
)

CLASSIFICATION = register(
    TaskType(
        name="classification",
        words="one class for a text or a pair of texts",
        implementation="hifi.tasks.classification:Classification",
        input_kind="text",
        inputs=_TEXTS,
        label=_CLASSES,
        num_labels=None,
        metrics=_CLASS_METRICS,
        problem_type="single_label_classification",
        request=TEXT_INPUT,
        answer=_LABEL_ANSWER,
    )
)
REGRESSION = register(
    TaskType(
        name="regression",
        words="one number for a text or a pair of texts",
        implementation="hifi.tasks.regression:Regression",
        input_kind="text",
        inputs=_TEXTS,
        label=_NUMBERS,
        num_labels=1,
        metrics=("pearson", "spearman"),
        problem_type="regression",
        request=TEXT_INPUT,
        answer=_VALUE_ANSWER,
    )
)
IMAGE_CLASSIFICATION = register(
    TaskType(
        name="image-classification",
        words="one class for an image",
        implementation="hifi.tasks.image_classification:ImageClassification",
        input_kind="image",
        inputs=_IMAGE,
        label=_CLASSES,
        num_labels=None,
        metrics=_CLASS_METRICS,
        problem_type="single_label_classification",
        request=IMAGE_INPUT,
        answer=_LABEL_ANSWER,
    )
)
