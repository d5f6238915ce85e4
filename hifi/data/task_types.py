"""The task types, each declared once: inputs, label, metrics, requests and answers.

Training, the bank, the inference process, the job spec, the OpenAPI document, the command line and
the documentation use these declarations; task types are listed nowhere else. The torch part of a
type (encoding, loss, metrics, logits to answer) is the class that ``implementation`` names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from hifi.errors import InvalidArgumentError, TaskNotSupportedError

InputKind = Literal["text", "image"]
FieldKind = Literal["text", "image", "words", "choices"]
Use = Literal[
    "text",
    "image",
    "words",
    "choices",
    "label",
    "labels",
    "flag",
    "tags",
    "spans",
    "answers",
    "choice",
    "target",
]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a data set that a task reads for one purpose.

    Attributes:
        field: the field of a task spec that names them.
        use: how they are read; determines which rows are refused.
        use_of_many: how several columns are read, if not like a single one.
        least: the minimum number of columns: 1, or 0 if a task can do without them.
        most: the maximum number of columns.
        names: usual names of such a column, by which it is found; the first one counts.
        beside: the field of the input column whose rows these must fit, if there is one.
        words: description for the command line and the OpenAPI document.
    """

    field: str
    use: Use
    use_of_many: Use | None = None
    least: int = 1
    most: int = 1
    names: tuple[str, ...] = ()
    beside: str | None = None
    words: str

    def use_of(self, count: int) -> Use:
        """Return how ``count`` columns are read."""
        return self.use_of_many or self.use if count > 1 else self.use


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """A field of an input to a prediction.

    Attributes:
        name: in the request.
        kind: a text, an image file in Base64, or a list of words or of choices.
        is_required: whether every input has it.
        words: description for the OpenAPI document.
    """

    name: str
    kind: FieldKind
    is_required: bool = True
    words: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """An input of ``/predict``.

    Attributes:
        name: in the OpenAPI document; unique.
        words: description for the OpenAPI document.
        fields: the first is required and distinguishes this request from others.
    """

    name: str
    words: str
    fields: tuple[RequestField, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A form in which a data set can hold the rows of a task.

    Attributes:
        inputs: the input columns, by the fields of a task spec.
        label: the label column, or columns.
        request: an input of ``/predict`` for such rows: a field for every input column, in the
            order of the columns.
    """

    inputs: tuple[Columns, ...]
    label: Columns
    request: Request

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a task spec that name the columns, the label last."""
        return tuple(columns.field for columns in (*self.inputs, self.label))

    @property
    def words(self) -> str:
        """What is read, for messages and the documentation."""
        return " and ".join(columns.words for columns in self.inputs)


@dataclass(frozen=True, kw_only=True)
class AnswerField:
    """A field of the answer to a prediction.

    Attributes:
        name: in the answer.
        type: of its value, for pydantic: ``str``, ``float``, ``dict[str, float]``, …
        words: description for the OpenAPI document.
    """

    name: str
    type: Any
    words: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of ``/predict``.

    Attributes:
        name: in the OpenAPI document; unique.
        words: description for the OpenAPI document.
        fields: no two answers have the same field names.
    """

    name: str
    words: str
    fields: tuple[AnswerField, ...]


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """One kind of downstream task.

    Attributes:
        name: in job specs and head deltas.
        words: description, one line.
        implementation: its torch part, ``module:class``; imported on first use.
        input_kind: the input that a backbone must read.
        layouts: the forms in which a data set can hold the rows.
        num_labels: logits per row; None for one per class of the training split.
        logits: one row of logits per ``sample``, ``[n, num_labels]``, or per ``token``,
            ``[n, S, num_labels]``, of which those of padding are ignored; or one logit per
            ``choice``, ``[n, C]``, whose samples are C texts each.
        metrics: the default first; higher is better for all.
        problem_type: the name in transformers' configurations; None if they have none.
        options: further fields of a task spec that apply to this type: ``threshold``, ``stride``.
        answer: the answer to an input.
    """

    name: str
    words: str
    implementation: str
    input_kind: InputKind
    layouts: tuple[Layout, ...]
    num_labels: int | None
    logits: Literal["sample", "token", "choice"] = "sample"
    metrics: tuple[str, ...]
    problem_type: str | None
    options: tuple[str, ...] = ()
    answer: Answer

    def __hash__(self) -> int:
        """Hash the name: the fields take longer than a prediction's other checks together."""
        return hash(self.name)

    @property
    def has_classes(self) -> bool:
        """Whether the labels are classes of the training split."""
        return self.num_labels is None

    @property
    def has_tags(self) -> bool:
        """Whether the classes are those of words, which tags or spans mark."""
        return self.has_classes and self.logits == "token"

    @property
    def reads_windows(self) -> bool:
        """Whether a long text is several samples: only tokenising it tells how many."""
        return self.logits == "token"

    def choose_metric(self, metric: str | None) -> str:
        """Return a metric of this type, by default the first.

        Raises:
            InvalidArgumentError: the type does not have this metric.
        """
        if metric is not None and metric not in self.metrics:
            limit = f"a {self.name} task has {', '.join(self.metrics)}"
            raise InvalidArgumentError("metric", value=metric, limit=limit)
        return metric or self.metrics[0]

    @property
    def requests(self) -> tuple[Request, ...]:
        """The inputs of ``/predict`` that any job of this type answers."""
        return tuple(dict.fromkeys(layout.request for layout in self.layouts))

    def layouts_with(self, fields: Collection[str]) -> tuple[Layout, ...]:
        """Return the layouts that have all of these fields of a task spec."""
        return tuple(layout for layout in self.layouts if set(fields) <= set(layout.fields))


_TYPES: dict[str, TaskType] = {}
# Planned task types that are not supported yet.
PLANNED = ("causal-lm",)


def register(task_type: TaskType) -> TaskType:
    """Register a task type; it replaces an earlier one of the same name."""
    _TYPES[task_type.name] = task_type
    return task_type


def task_types() -> tuple[TaskType, ...]:
    """Return the supported task types, in the order of their registration."""
    return tuple(_TYPES.values())


def find_task_type(name: str) -> TaskType:
    """Return the task type of a name.

    Raises:
        TaskNotSupportedError: the type is unknown or not supported yet.
    """
    task_type = _TYPES.get(name)
    if task_type is None:
        state = "is not supported yet" if name in PLANNED else "is unknown"
        raise TaskNotSupportedError(f"task type {name!r} {state}; supported: {', '.join(_TYPES)}")
    return task_type


def metric_names() -> tuple[str, ...]:
    """Return the metrics of all task types, each once."""
    return tuple(dict.fromkeys(name for each in task_types() for name in each.metrics))


def request_fields() -> dict[str, RequestField]:
    """Return the fields of inputs of ``/predict``, by name; of equal names the first."""
    found: dict[str, RequestField] = {}
    for request in (request for each in task_types() for request in each.requests):
        for field in request.fields:
            found.setdefault(field.name, field)
    return found


MULTI_LABEL_PROBLEM = "multi_label_classification"  # in transformers' configurations
MOST_LABEL_COLUMNS = 1000
FEWEST_CHOICES, MOST_CHOICES = 2, 100  # of a row
_TEXTS = Columns(field="text", use="text", most=2, words="one or two text columns")
TEXT_INPUT = Request(
    name="TextInput",
    words="A text, or a pair of texts, as the job was trained on.",
    fields=(
        RequestField(name="text", kind="text"),
        RequestField(
            name="text_pair", kind="text", is_required=False, words="the second text of a pair"
        ),
    ),
)
IMAGE_INPUT = Request(
    name="ImageInput",
    words="An image.",
    fields=(RequestField(name="image", kind="image", words="the file in Base64"),),
)

TOKENS_INPUT = Request(
    name="TokensInput",
    words="The words of a text, which also get tags in the answer.",
    fields=(RequestField(name="tokens", kind="words"),),
)
CHOICES_INPUT = Request(
    name="ChoicesInput",
    words="Choices, one of which is right, and what they are about.",
    fields=(
        RequestField(name="choices", kind="choices", words="two or more texts"),
        RequestField(
            name="text", kind="text", is_required=False, words="what precedes the choices"
        ),
        RequestField(
            name="text_pair",
            kind="text",
            is_required=False,
            words="a second text, which each choice follows",
        ),
    ),
)
QUESTION_INPUT = Request(
    name="QuestionInput",
    words="A question, and the text in which its answer is looked for.",
    fields=(
        RequestField(name="question", kind="text"),
        RequestField(name="context", kind="text"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class EntitySpan:
    """An entity in an input: its first character, one after its last one, and what it is.

    The score is the mean probability of its words' classes.
    """

    start: int
    end: int
    label: str
    score: float
    text: str


CLASSIFICATION = register(
    TaskType(
        name="classification",
        words="one class for a text or a pair of texts",
        implementation="hifi.tasks.classification:Classification",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(_TEXTS,),
                request=TEXT_INPUT,
                label=Columns(field="label", use="label", words="the column of classes"),
            ),
        ),
        num_labels=None,
        metrics=("accuracy", "f1", "matthews"),
        problem_type="single_label_classification",
        answer=Answer(
            name="LabelPrediction",
            words="The predicted label of an input.",
            fields=(
                AnswerField(name="label", type=str, words="the likeliest class"),
                AnswerField(name="score", type=float, words="its probability"),
                AnswerField(
                    name="scores", type=dict[str, float], words="the probability of every class"
                ),
            ),
        ),
    )
)
MULTI_LABEL = register(
    TaskType(
        name="multi-label",
        words="any number of labels for a text or a pair of texts",
        implementation="hifi.tasks.multi_label:MultiLabel",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(_TEXTS,),
                request=TEXT_INPUT,
                label=Columns(
                    field="label",
                    use="labels",
                    use_of_many="flag",
                    most=MOST_LABEL_COLUMNS,
                    words="a column of lists, or several columns of 0 and 1",
                ),
            ),
        ),
        num_labels=None,
        metrics=("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy"),
        problem_type=MULTI_LABEL_PROBLEM,
        options=("threshold",),
        answer=Answer(
            name="LabelsPrediction",
            words="The predicted labels of an input.",
            fields=(
                AnswerField(
                    name="labels",
                    type=list[str],
                    words="the labels whose probability reaches the threshold; may be none",
                ),
                AnswerField(
                    name="scores", type=dict[str, float], words="the probability of every label"
                ),
            ),
        ),
    )
)
REGRESSION = register(
    TaskType(
        name="regression",
        words="one number for a text or a pair of texts",
        implementation="hifi.tasks.regression:Regression",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(_TEXTS,),
                request=TEXT_INPUT,
                label=Columns(field="label", use="target", words="the column of numbers"),
            ),
        ),
        num_labels=1,
        metrics=("pearson", "spearman"),
        problem_type="regression",
        answer=Answer(
            name="ValuePrediction",
            words="The predicted number of an input.",
            fields=(AnswerField(name="value", type=float, words="the number"),),
        ),
    )
)
IMAGE_CLASSIFICATION = register(
    replace(
        CLASSIFICATION,
        name="image-classification",
        words="one class for an image",
        implementation="hifi.tasks.image_classification:ImageClassification",
        input_kind="image",
        layouts=(
            Layout(
                inputs=(Columns(field="image", use="image", words="the column of images"),),
                label=CLASSIFICATION.layouts[0].label,
                request=IMAGE_INPUT,
            ),
        ),
    )
)
TOKEN_CLASSIFICATION = register(
    TaskType(
        name="token-classification",
        words="entities in a text, as names and places, or a class for each word",
        implementation="hifi.tasks.token_classification:TokenClassification",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(
                    Columns(
                        field="tokens",
                        use="words",
                        names=("tokens", "words"),
                        words="a column of lists of words",
                    ),
                ),
                label=Columns(
                    field="tags",
                    use="tags",
                    names=("tags", "ner_tags"),
                    beside="tokens",
                    words="a column of lists with a tag for each word",
                ),
                request=TOKENS_INPUT,
            ),
            Layout(
                inputs=(Columns(field="text", use="text", names=("text",), words="a text column"),),
                label=Columns(
                    field="spans",
                    use="spans",
                    names=("spans",),
                    beside="text",
                    words="a column of lists of `{start, end, label}`",
                ),
                request=TEXT_INPUT,
            ),
        ),
        num_labels=None,
        logits="token",
        metrics=("f1", "precision", "recall", "accuracy"),
        problem_type=None,
        answer=Answer(
            name="EntitiesPrediction",
            words="The entities found in an input.",
            fields=(
                AnswerField(
                    name="entities",
                    type=list[EntitySpan],
                    words="in the order of the text; of tokens joined by spaces",
                ),
                AnswerField(
                    name="tags",
                    type=list[str | None] | None,
                    words="of each word; null for an input that is a text, and for a word of which "
                    "the tokenizer reads nothing, if every word has a class",
                ),
            ),
        ),
    )
)
QUESTION_ANSWERING = register(
    TaskType(
        name="question-answering",
        words="the part of a context that answers a question, or that there is none",
        implementation="hifi.tasks.question_answering:QuestionAnswering",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(
                    Columns(
                        field="question",
                        use="text",
                        names=("question",),
                        words="a column of questions",
                    ),
                    Columns(
                        field="context",
                        use="text",
                        names=("context",),
                        words="a column of the texts that answer them",
                    ),
                ),
                label=Columns(
                    field="answers",
                    use="answers",
                    names=("answers",),
                    beside="context",
                    words="a column of `{text: […], answer_start: […]}`, empty for no answer",
                ),
                request=QUESTION_INPUT,
            ),
        ),
        num_labels=2,
        logits="token",
        metrics=("f1", "exact_match"),
        problem_type=None,
        options=("stride",),
        answer=Answer(
            name="AnswerPrediction",
            words="The answer to a question.",
            fields=(
                AnswerField(
                    name="answer",
                    type=str | None,
                    words="the part of the context; null if the context does not answer",
                ),
                AnswerField(name="score", type=float, words="its probability"),
                AnswerField(
                    name="start", type=int | None, words="its first character in the context"
                ),
                AnswerField(name="end", type=int | None, words="one after its last character"),
            ),
        ),
    )
)
MULTIPLE_CHOICE = register(
    TaskType(
        name="multiple-choice",
        words="the right one of several texts: answers to a question, endings of a story",
        implementation="hifi.tasks.multiple_choice:MultipleChoice",
        input_kind="text",
        layouts=(
            Layout(
                inputs=(
                    replace(_TEXTS, least=0, words="none, one or two text columns"),
                    Columns(
                        field="choices",
                        use="choices",
                        use_of_many="text",
                        most=MOST_CHOICES,
                        names=("choices", "endings", "options"),
                        words="a column of lists of choices, or a text column for each choice",
                    ),
                ),
                label=Columns(
                    field="label",
                    use="choice",
                    names=("label", "labels", "answer"),
                    words="the column with the number or the letter of the right choice",
                ),
                request=CHOICES_INPUT,
            ),
        ),
        num_labels=1,
        logits="choice",
        metrics=("accuracy",),
        problem_type=None,
        answer=Answer(
            name="ChoicePrediction",
            words="The likeliest choice of an input.",
            fields=(
                AnswerField(name="choice", type=int, words="its place among the choices, from 0"),
                AnswerField(name="score", type=float, words="its probability"),
                AnswerField(
                    name="scores", type=list[float], words="the probability of every choice"
                ),
            ),
        ),
    )
)
