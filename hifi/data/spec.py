"""A user's description of a task, and of a test split that may have no labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, TypeAlias

from hifi.arguments import check_integer, check_number
from hifi.data.task_types import MOST_CHOICES, MOST_LABEL_COLUMNS, find_task_type, task_types
from hifi.errors import InvalidArgumentError

INPUT_FIELDS = (
    "text",
    "image",
    "tokens",
    "question",
    "context",
    "choices",
)  # that name input columns
LABEL_FIELDS = ("label", "tags", "spans", "answers")
FIELDS = (*INPUT_FIELDS, *LABEL_FIELDS)
_SINGLE_FIELDS = tuple(name for name in FIELDS if name not in ("text", "label", "choices"))
OPTIONS = ("threshold", "stride")  # that apply to some task types
_MANY_IN_ONE = ("choices",)  # fields of which several columns make one field of an input
SPLITS = ("train", "validation", "test")  # of a data set; only the first is required


RequestColumns: TypeAlias = "Mapping[str, str | tuple[str, ...]]"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A user's description of a task; missing parts are inferred from the columns.

    Attributes:
        type: the name of a task type.
        text: one or two text columns.
        label: the column of classes, lists of labels or numbers; or several columns, each of which
            says by 0 or 1 whether a row has the label that is its name.
        image: the image column.
        tokens: the column of lists of words.
        tags: the column of lists with a tag for each word.
        spans: the column of lists of labelled spans of the text.
        question: the column of questions.
        context: the column of the texts that answer them.
        choices: the column of lists of choices, or a text column for each choice.
        answers: the column of answers: their texts, and where they begin in the context.
        metric: the metric by which the best step is chosen.
        threshold: the probability from which on a row has a label; by default the best one on the
            validation split.
        stride: tokens that two windows of a long context share, at most half of those that a window
            has; by default a quarter.
    """

    type: str | None = None
    text: tuple[str, ...] = ()
    label: str | tuple[str, ...] | None = None
    image: str | None = None
    tokens: str | None = None
    tags: str | None = None
    spans: str | None = None
    question: str | None = None
    context: str | None = None
    choices: tuple[str, ...] = ()
    answers: str | None = None
    metric: str | None = None
    threshold: float | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        for name in ("type", *_SINGLE_FIELDS, "metric"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise InvalidArgumentError(name, value=value, limit="a text")
        object.__setattr__(self, "text", column_names("text", self.text))
        if len(self.text) > 2 or len(set(self.text)) < len(self.text):
            limit = "one column, or two different ones"
            raise InvalidArgumentError("text", value=self.text, limit=limit)
        choices = column_names("choices", self.choices)
        if len(set(choices)) < len(choices) or len(choices) > MOST_CHOICES:
            limit = f"at most {MOST_CHOICES:,} columns, each once"
            raise InvalidArgumentError("choices", value=self.choices, limit=limit)
        object.__setattr__(self, "choices", choices)
        self._set_label()
        if self.threshold is not None:
            threshold = check_number(
                "threshold", self.threshold, is_allowed=_is_share, limit="a number above 0, below 1"
            )
            object.__setattr__(self, "threshold", threshold)
        if self.stride is not None:
            stride = check_integer("stride", self.stride, least=0)
            object.__setattr__(self, "stride", stride)
        if self.text and self.image is not None:
            raise InvalidArgumentError(
                "image", value=self.image, limit="a task has text columns or an image column"
            )
        taken: set[str] = set()
        for field, names in self.named.items():
            if taken & set(names):
                limit = "another column than the inputs"
                raise InvalidArgumentError(field, value=getattr(self, field), limit=limit)
            taken |= set(names) if field in INPUT_FIELDS else set()

    def _set_label(self) -> None:
        """Check the label columns; a single one is stored as a text."""
        names = column_names("label", self.label)
        if len(set(names)) < len(names) or len(names) > MOST_LABEL_COLUMNS:
            limit = f"at most {MOST_LABEL_COLUMNS:,} columns, each once"
            raise InvalidArgumentError("label", value=self.label, limit=limit)
        object.__setattr__(self, "label", names if len(names) > 1 else next(iter(names), None))

    @classmethod
    def of(
        cls,
        task: str | Mapping[str, Any] | TaskSpec | None = None,
        *,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        image: str | None = None,
        metric: str | None = None,
    ) -> TaskSpec:
        """Build a spec from a caller's arguments.

        Args:
            task: a type; or a mapping with the attributes of a TaskSpec as entries (all optional),
                as in a job spec; or a TaskSpec.
            text: one or two text columns.
            label: the label column, or columns.
            image: the image column.
            metric: the metric by which the best step is chosen.

        Raises:
            InvalidArgumentError: an entry is unknown, has the wrong type, or is set twice with
                different values.
        """
        spec = cls._from_task(task)
        others = cls(
            text=column_names("text", text),
            label=None if label is None else column_names("label", label),
            image=image,
            metric=metric,
        )
        entries: dict[str, Any] = {}
        for name in ("text", "label", "image", "metric"):
            first, second = getattr(spec, name), getattr(others, name)
            if first and second and first != second:
                raise InvalidArgumentError(
                    name, value=second, limit=f"task has {first!r}; set only one of the two"
                )
            entries[name] = first or second
        return replace(spec, **entries)

    @classmethod
    def _from_task(cls, task: object) -> TaskSpec:
        """Convert the argument ``task`` of :meth:`of`."""
        if isinstance(task, TaskSpec):
            return task
        if isinstance(task, str | None):
            return cls(type=task)
        if not isinstance(task, Mapping):
            limit = "a task type, a mapping or a TaskSpec"
            raise InvalidArgumentError("task", value=task, limit=limit)
        known = [field.name for field in fields(cls)]
        for name in task:
            if name not in known:
                raise InvalidArgumentError("task", value=name, limit=f"entries {', '.join(known)}")
        return cls(**task)

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """The columns that are named, by the field that names them; the label is the last."""
        return named_columns(vars(self))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input columns that are named."""
        return tuple(chain.from_iterable(named_columns(vars(self), INPUT_FIELDS).values()))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns that are named."""
        return tuple(chain.from_iterable(named_columns(vars(self), LABEL_FIELDS).values()))

    @property
    def learned(self) -> str | tuple[str, ...]:
        """The label column that is named, or several; an empty text if none is."""
        columns = self.label_columns
        return columns if len(columns) > 1 else "".join(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are named."""
        return (*self.inputs, *self.label_columns)

    @property
    def names_all_columns(self) -> bool:
        """Whether no column must be inferred."""
        named = set(self.named)
        layouts = (layout for each in task_types() for layout in each.layouts)
        return any(set(layout.fields) == named for layout in layouts)


@dataclass(frozen=True)
class IfLabelled:
    """A test split that is scored only if it has labels, as those that come with a data set.

    Such splits are often published without labels: the column is missing, or every label is
    missing or -1. A data set of the hub may also have no such split.

    Attributes:
        source: as ``finetune`` takes it.
    """

    source: Any


def column_names(field: str, given: object) -> tuple[str, ...]:
    """Return the names of one column or several; None is no column.

    Args:
        field: of a task spec, for the error.
        given: a name, names, or None.

    Raises:
        InvalidArgumentError: anything else.
    """
    if isinstance(given, str | None):
        return () if given is None else (given,)
    names = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) for name in names):
        raise InvalidArgumentError(field, value=given, limit="the names of columns")
    return names


def named_columns(
    task: Mapping[str, Any], fields: Sequence[str] = FIELDS
) -> dict[str, tuple[str, ...]]:
    """Return the columns that a task names, by the field that names them; in the fields' order.

    Args:
        task: with the fields of a task spec, of which some may be missing or None.
        fields: to look at.

    Raises:
        InvalidArgumentError: as :func:`column_names`.
    """
    names = {field: column_names(field, task.get(field)) for field in fields}
    return {field: columns for field, columns in names.items() if columns}


def request_columns(task: Mapping[str, Any]) -> RequestColumns:
    """Return the columns that a task reads, by the fields of an input: ``text``, ….

    Several columns of choices are a tuple.

    Args:
        task: with the fields of a task spec; without a type there are no columns.
    """
    if not task.get("type"):
        return {}
    named = named_columns(task, INPUT_FIELDS)
    for layout in find_task_type(task["type"]).layouts_with(named):
        fields = [field.name for field in layout.request.fields if field.name not in _MANY_IN_ONE]
        single = {field: names for field, names in named.items() if field not in _MANY_IN_ONE}
        columns = chain.from_iterable(single.get(each.field, ()) for each in layout.inputs)
        many = {
            field: named[field] if len(named[field]) > 1 else named[field][0]
            for field in _MANY_IN_ONE
            if field in named
        }
        return {**dict(zip(fields, columns, strict=False)), **many}
    return {}


def names_in(columns: RequestColumns) -> list[str]:
    """Return the names of all columns that a task reads."""
    each = columns.values()
    return list(chain.from_iterable((name,) if isinstance(name, str) else name for name in each))


def read_request(columns: RequestColumns, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an input that a row has.

    Args:
        columns: by the fields of an input.
        values: of a row, by column.
    """
    return {
        field: values[name] if isinstance(name, str) else [values[each] for each in name]
        for field, name in columns.items()
        if set(names_in({field: name})) <= values.keys()
    }


def _is_share(number: float) -> bool:
    return 0 < number < 1
