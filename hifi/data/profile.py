"""The profile of a data set's columns: computed at the upload, used to check jobs.

A profile is stored as plain JSON in the data set's row::

    {"version": 1, "splits": {"train": 400, "validation": 40}, "columns": [
        {"name": "label", "type": "int64", "kind": "integer", "cells": true,
         "classes": {"count": 2, "labels": ["no", "yes"], "single": {"count": 1, "some": ["no"]}},
         "problems": {"label": {"validation": {"row": 3, "reason": "the label is missing"}}},
         "test_unlabelled": false}, …]}

``columns`` are the training split's, in its order. ``problems`` has for each *use* of a column
(``text``, ``label``, ``labels``, ``flag``, ``target``, ``image``, ``words``, ``choices``, ``tags``,
``spans``, ``answers``, ``choice``) and each split the first row that training would refuse, and the
reason, which quotes only short values. Uses that a column's kind excludes have no entry. ``beside``
has the first row that does not fit another column, by its name and by split: tags beside words,
spans and answers beside texts. ``classes`` have ``labels`` if they are few and take at most a
kilobyte, and ``single`` if some of few classes occur in a single row. ``tags`` are the classes of
words, as ``classes``, if the column holds tags or spans. ``choices`` is the length of lists of
texts, and ``choice_rows`` has by split the first row of each label, as pairs, if all labels are
small numbers or letters. ``test_unlabelled`` is missing in profiles of earlier versions, and so are
the uses ``labels``, ``flag``, ``words``, ``choices``, ``tags``, ``spans``, ``answers`` and
``choice``. A column that is no column unless it is named (a table's index, or one that no task can
use) has ``"left_out"``. A column takes 100 bytes to 3 KB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from hifi.data.classes.names import find_alike
from hifi.data.task_types import Use
from hifi.errors import DataError

Kind = Literal[
    "text",
    "integer",
    "boolean",
    "float",
    "whole",
    "list",
    "spans",
    "answers",
    "image",
    "null",
    "other",
]
LeftOut = Literal["index", "unfit"]
INDEX_NOTE = "it is the table's index; name it to use it"
USES: tuple[Use, ...] = get_args(Use)
_VERSION = 1
_NAMED_NOTES = 3  # columns that a message lists


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The reason why a use is not possible; row None is the whole column.

    The line is that of the uploaded text file on which the row begins, if it is known.
    """

    row: int | None
    reason: str
    line: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {name: value for name, value in vars(self).items() if name != "line" or value}

    def error(self, column: str, *, split: str, param: str) -> DataError:
        """Return the error for a column of a split that the argument ``param`` names."""
        return DataError(
            self.reason, split=split, row=self.row, line=self.line, column=column, param=param
        )


def first_problem(problems: Iterable[Problem | None]) -> Problem | None:
    """Return the problem of the lowest row; one of the whole column comes first."""
    found = [problem for problem in problems if problem is not None]
    return min(found, key=lambda problem: problem.row or 0, default=None)


def first_of_rows(rows: Iterable[tuple[int | None, str]]) -> Problem | None:
    """Return the problem of the lowest row, and of equal rows the first in the list.

    Args:
        rows: a row, or None if there is none, and what is wrong with it.
    """
    return first_problem(
        None if row is None else Problem(row=row, reason=reason) for row, reason in rows
    )


def describe_left_out(notes: Mapping[str, str]) -> str:
    """Return the end of a message that lists the left out columns; empty if there are none.

    Args:
        notes: why each is left out, by name.
    """
    if not notes:
        return ""
    shown = [f"{name!r} ({note})" for name, note in list(notes.items())[:_NAMED_NOTES]]
    return f"; left out: {', '.join(shown)}{', …' if len(notes) > _NAMED_NOTES else ''}"


def describe_left_out_rows(count: int, *, split: str) -> str:
    """Return the note on rows of a labelling tool that nobody accepted."""
    return f"rows of {split} that are left out, because nobody accepted or labelled them: {count:,}"


def no_rows(left_out: int, *, split: str) -> str:
    """Return the reason for refusing a split without rows."""
    note = f": {describe_left_out_rows(left_out, split=split)}" if left_out else ""
    return f"there are no rows{note}"


# The kinds of columns that have a use, and what is said of others.
_FITTING: Mapping[Use, tuple[tuple[Kind, ...], str]] = {
    "text": (("text", "null"), "a text column is needed"),
    "image": (("image",), "an image column is needed (a struct of bytes and path)"),
    "labels": (
        ("list",),
        "a column of lists of texts or integers is needed, or several columns of 0 and 1",
    ),
    "flag": (("integer", "boolean", "whole", "null"), "a column of 0 and 1 is needed"),
    "words": (("list",), "a column of lists of texts is needed, the words of each row"),
    "choices": (("list",), "a column of lists of texts, or several columns of texts, is needed"),
    "choice": (
        ("text", "integer", "whole", "null"),
        "a number or a letter of the right choice is needed",
    ),
    "tags": (("list",), "a column of lists is needed, a tag of each word"),
    "spans": (("spans",), "a column of lists of objects with start, end and label is needed"),
    "answers": (
        ("answers",),
        "a column of answers is needed (objects with lists text and answer_start: no .csv)",
    ),
}
_NO_LABELS: tuple[Kind, ...] = ("list", "spans", "answers")


def misfit(use: Use, kind: Kind, type_name: str, *, are_cells: bool) -> Problem | None:
    """Return the problem if a column's kind excludes a use."""
    if use == "label" and kind in _NO_LABELS:
        needed = "one label of each row is needed (lists of labels are for a multi-label task)"
        # Its first value is refused, as one of any other type.
        return Problem(row=1, reason=f"{needed}, this one holds {type_name}")
    fitting, needed = _FITTING.get(use, ((kind,), ""))
    if kind in fitting or (use == "text" and are_cells):
        return None
    return Problem(row=None, reason=f"{needed}, this one holds {type_name}")


@dataclass(frozen=True, kw_only=True)
class SingleClasses:
    """The classes that occur in a single row of the training split.

    Attributes:
        count: their number.
        some: the first of them, in the order of the classes.
    """

    count: int
    some: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """One column of the training split, and the columns of that name in the other splits.

    Attributes:
        name: as in the file.
        type: for messages.
        kind: how a task can use it; ``whole``: floating-point numbers without fractions; ``list``:
            lists of texts or integers; ``spans``: lists of objects with start, end and label;
            ``answers``: texts and their starts.
        are_cells: whether it comes from a delimited file, and can be read as texts in any case.
        num_classes: the number of classes if it is the label, in lists too; None if too many to
            count.
        labels: the classes, in the order of the logits; None if they are long or too many.
        single_classes: those with a single row; None if there are none, or they are not known.
        num_tags: the number of classes of words if it holds tags or spans; None if it does not, or
            they cannot be told.
        tags: these classes, in the order of the logits; None if they are long or too many.
        num_choices: the length of the first list of texts, if it has lists of texts.
        choice_rows: the first row of each label, by split, if all labels of the training split are
            small numbers or letters, as those of a choice.
        problems: by use and split.
        beside: the first row that does not fit another column, by its name and by split.
        test_unlabelled: whether the test split lacks it, or has a label in no row; None if unknown.
        left_out: why it is not among the columns: it is a table's index, which a task may name, or
            no task can use it; every use has the same problem then.
    """

    name: str
    type: str
    kind: Kind
    are_cells: bool = False
    num_classes: int | None = None
    labels: tuple[str | int, ...] | None = None
    single_classes: SingleClasses | None = None
    num_tags: int | None = None
    tags: tuple[str, ...] | None = None
    num_choices: int | None = None
    choice_rows: Mapping[str, Mapping[str | int, int]] = field(default_factory=dict)
    problems: Mapping[Use, Mapping[str, Problem]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Problem]] = field(default_factory=dict)
    test_unlabelled: bool | None = False
    left_out: LeftOut | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; none if there are more than a few."""
        return tuple(map(str, self.labels or ()))

    @property
    def has_named_integers(self) -> bool:
        """Whether the values are integers, and the file names them as classes."""
        is_integer = self.kind == "integer" and not self.are_cells
        return is_integer and any(isinstance(label, str) for label in self.labels or ())

    @property
    def classes_alike(self) -> list[list[str]]:
        """The groups of named classes that look alike."""
        return find_alike(self.class_names)

    @property
    def unfit(self) -> Problem | None:
        """The problem of a column that no task can use; None for others."""
        return self.problems["text"]["train"] if self.left_out == "unfit" else None

    @property
    def note(self) -> str | None:
        """Why the column is left out, in words; None if it is not."""
        if self.unfit is not None:
            return str(DataError(self.unfit.reason, row=self.unfit.row, line=self.unfit.line))
        return None if self.left_out is None else INDEX_NOTE

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        classes: dict[str, Any] = {"count": self.num_classes}
        if self.labels is not None:
            classes["labels"] = list(self.labels)
        if self.single_classes is not None:
            single = self.single_classes
            classes["single"] = {"count": single.count, "some": list(single.some)}
        document: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "kind": self.kind,
            "cells": self.are_cells,
            "classes": classes,
        }
        if self.num_tags is not None:
            document["tags"] = {"count": self.num_tags}
            if self.tags is not None:
                document["tags"]["labels"] = list(self.tags)
        if self.num_choices is not None:
            document["choices"] = self.num_choices
        if self.choice_rows:
            found = self.choice_rows.items()
            document["choice_rows"] = {
                split: list(map(list, rows.items())) for split, rows in found
            }
        problems, beside = _to_json(self.problems), _to_json(self.beside)
        return {
            **document,
            **({"problems": problems} if problems else {}),
            **({"beside": beside} if beside else {}),
            **({} if self.test_unlabelled is None else {"test_unlabelled": self.test_unlabelled}),
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        classes = document["classes"]
        labels, single = classes.get("labels"), classes.get("single")
        tags = document.get("tags", {})
        return cls(
            name=document["name"],
            type=document["type"],
            kind=document["kind"],
            are_cells=document["cells"],
            num_classes=classes["count"],
            labels=None if labels is None else tuple(labels),
            single_classes=None
            if single is None
            else SingleClasses(count=single["count"], some=tuple(single["some"])),
            num_tags=tags.get("count"),
            tags=tuple(tags["labels"]) if "labels" in tags else None,
            num_choices=document.get("choices"),
            choice_rows={
                split: dict(rows) for split, rows in document.get("choice_rows", {}).items()
            },
            problems=_from_json(document.get("problems", {})),
            beside=_from_json(document.get("beside", {})),
            test_unlabelled=document.get("test_unlabelled"),
            left_out=document.get("left_out"),
        )


def _to_json(problems: Mapping[Any, Mapping[str, Problem]]) -> dict[Any, dict[str, Any]]:
    return {
        name: {split: problem.to_json() for split, problem in found.items()}
        for name, found in problems.items()
        if found
    }


def _from_json(document: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Problem]]:
    return {
        name: {split: Problem(**entry) for split, entry in found.items()}
        for name, found in document.items()
    }


@dataclass(frozen=True, kw_only=True)
class DatasetProfile:
    """A data set's splits and columns.

    Attributes:
        rows: by split.
        left_out: the rows of a labelling tool that nobody accepted, by split; none of most files.
        columns: in the order of the training split; those that no task can use are the last.
    """

    rows: Mapping[str, int]
    columns: Sequence[ColumnProfile]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, without those that are left out."""
        return tuple(column.name for column in self.columns if column.left_out is None)

    @property
    def notes(self) -> dict[str, str]:
        """Why columns are left out, by name."""
        return {column.name: column.note for column in self.columns if column.note is not None}

    def column(self, name: str) -> ColumnProfile | None:
        """Return the column of a name; None if it does not exist."""
        return next((column for column in self.columns if column.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        columns = [column.to_json() for column in self.columns]
        left_out = {"left_out_rows": dict(self.left_out)} if self.left_out else {}
        return {"version": _VERSION, "splits": dict(self.rows), "columns": columns, **left_out}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        columns = [ColumnProfile.from_json(entry) for entry in document["columns"]]
        left_out = document.get("left_out_rows", {})
        return cls(rows=document["splits"], columns=columns, left_out=left_out)
