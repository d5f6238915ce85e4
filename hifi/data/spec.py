"""A user's description of a task, and of a test split that may have no labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hifi.errors import InvalidArgumentError

SPLITS = ("train", "validation", "test")  # of a data set; only the first is required


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A user's description of a task; missing parts are inferred from the columns.

    Attributes:
        type: ``classification``, ``regression`` or ``image-classification``.
        text: one or two text columns.
        label: the column of classes or numbers.
        image: the image column.
        metric: the metric by which the best step is chosen.
    """

    type: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    image: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        for name in ("type", "label", "image", "metric"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise InvalidArgumentError(name, value=value, limit="a text")
        object.__setattr__(self, "text", _names(self.text))
        if len(self.text) > 2 or len(set(self.text)) < len(self.text):
            limit = "one column, or two different ones"
            raise InvalidArgumentError("text", value=self.text, limit=limit)
        if self.text and self.image is not None:
            raise InvalidArgumentError(
                "image", value=self.image, limit="a task has text columns or an image column"
            )
        if self.label is not None and self.label in (*self.text, self.image):
            raise InvalidArgumentError(
                "label", value=self.label, limit="another column than the inputs"
            )

    @classmethod
    def of(
        cls,
        task: str | Mapping[str, Any] | TaskSpec | None = None,
        *,
        text: str | Sequence[str] | None = None,
        label: str | None = None,
        image: str | None = None,
        metric: str | None = None,
    ) -> TaskSpec:
        """Build a spec from a caller's arguments.

        Args:
            task: a type; or a mapping with the entries ``type, text, label, image, metric`` (all
                optional), as in a job spec; or a TaskSpec.
            text: one or two text columns.
            label: the column of classes or numbers.
            image: the image column.
            metric: the metric by which the best step is chosen.

        Raises:
            InvalidArgumentError: an entry is unknown, has the wrong type, or is set twice with
                different values.
        """
        spec = cls._from_task(task)
        others = cls(text=_names(text), label=label, image=image, metric=metric)
        entries: dict[str, Any] = {}
        for name in ("text", "label", "image", "metric"):
            first, second = getattr(spec, name), getattr(others, name)
            if first and second and first != second:
                raise InvalidArgumentError(
                    name, value=second, limit=f"task has {first!r}; set only one of the two"
                )
            entries[name] = first or second
        return cls(type=spec.type, **entries)

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
    def columns(self) -> tuple[str, ...]:
        """The columns that are named."""
        return (*self.text, *(name for name in (self.image, self.label) if name is not None))

    @property
    def names_all_columns(self) -> bool:
        """Whether no column must be inferred."""
        return self.label is not None and bool(self.text or self.image)


@dataclass(frozen=True)
class IfLabelled:
    """A test split that is scored only if it has labels, as those that come with a data set.

    Such splits are often published without labels: the column is missing, or every label is
    missing or -1. A data set of the hub may also have no such split.

    Attributes:
        source: as ``finetune`` takes it.
    """

    source: Any


def _names(text: object) -> tuple[str, ...]:
    """Return the names of one column or several; None is no column."""
    if isinstance(text, str | None):
        return () if text is None else (text,)
    names = tuple(text) if isinstance(text, Iterable) else (text,)
    if not all(isinstance(name, str) for name in names):
        raise InvalidArgumentError("text", value=text, limit="one or two columns")
    return names
