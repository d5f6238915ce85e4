"""The task types, each declared once: what it reads, learns, measures and answers.

Training, the bank, the inference process, the job spec, the OpenAPI document, the command line and
the documentation ask here; nothing else lists task types. The torch part of a type (encoding, loss,
metrics, how logits become an answer) is the class that ``implementation`` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hifi.errors import TaskNotSupportedError

InputKind = Literal["text", "image"]
Use = Literal["text", "image", "label", "target"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a data set that a task reads for one purpose.

    Attributes:
        field: of a task spec, which names them: ``text``, ``image`` or ``label``.
        use: how they are read; it says which rows are refused.
        most: how many there may be; one at least.
        words: for the command line and the OpenAPI document.
    """

    field: str
    use: Use
    most: int = 1
    words: str


@dataclass(frozen=True, kw_only=True)
class AnswerField:
    """A field of the answer to a prediction.

    Attributes:
        name: in the answer.
        kind: ``text``, ``number``, or ``numbers`` by name.
        words: for the OpenAPI document.
    """

    name: str
    kind: Literal["text", "number", "numbers"]
    words: str


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
        has_classes: whether a label is one of the classes that the training split names.
        metrics: the default first; of each the greater is better.
        problem_type: as transformers' configurations name it.
        request: the fields of an input of ``/predict``; the first is required, and so are as many
            as there are input columns.
        answer: the fields of its answer.
    """

    name: str
    words: str
    implementation: str
    input_kind: InputKind
    inputs: Columns
    label: Columns
    has_classes: bool
    metrics: tuple[str, ...]
    problem_type: str
    request: tuple[str, ...]
    answer: tuple[AnswerField, ...]


_TEXTS = Columns(field="text", use="text", most=2, words="one or two text columns")
_IMAGE = Columns(field="image", use="image", words="the column of images")
_CLASSES = Columns(field="label", use="label", words="the column of classes")
_NUMBERS = Columns(field="label", use="target", words="the column of numbers")
_CLASS_METRICS = ("accuracy", "f1", "matthews")
_CLASS_ANSWER = (
    AnswerField(name="label", kind="text", words="the likeliest class"),
    AnswerField(name="score", kind="number", words="its probability"),
    AnswerField(name="scores", kind="numbers", words="the probability of every class"),
)

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


register(
    TaskType(
        name="classification",
        words="one class for a text or a pair of texts",
        implementation="hifi.tasks.classification:Classification",
        input_kind="text",
        inputs=_TEXTS,
        label=_CLASSES,
        has_classes=True,
        metrics=_CLASS_METRICS,
        problem_type="single_label_classification",
        request=("text", "text_pair"),
        answer=_CLASS_ANSWER,
    )
)
register(
    TaskType(
        name="regression",
        words="one number for a text or a pair of texts",
        implementation="hifi.tasks.regression:Regression",
        input_kind="text",
        inputs=_TEXTS,
        label=_NUMBERS,
        has_classes=False,
        metrics=("pearson", "spearman"),
        problem_type="regression",
        request=("text", "text_pair"),
        answer=(AnswerField(name="value", kind="number", words="the number"),),
    )
)
register(
    TaskType(
        name="image-classification",
        words="one class for an image",
        implementation="hifi.tasks.image_classification:ImageClassification",
        input_kind="image",
        inputs=_IMAGE,
        label=_CLASSES,
        has_classes=True,
        metrics=_CLASS_METRICS,
        problem_type="single_label_classification",
        request=("image",),
        answer=_CLASS_ANSWER,
    )
)
