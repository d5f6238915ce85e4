"""The profile of a data set's columns: computed at the upload, used to check jobs.

A profile is stored as plain JSON in the data set's row::

    {"version": 1, "splits": {"train": 400, "validation": 40}, "columns": [
        {"name": "label", "type": "int64", "kind": "integer", "cells": true,
         "classes": {"count": 2},
         "problems": {"label": {"validation": {"row": 3, "reason": "the label is missing"}}}}, …]}

``columns`` are the training split's, in its order. ``problems`` has for each *use* of a column
(``text``, ``label``, ``target``, ``image``) and each split the first row that training would
refuse, and the reason, which quotes only short values. Uses that a column's kind excludes have no
entry. A column takes 100 bytes to 2 KB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from hifi.data.task_types import Use

Kind = Literal["text", "integer", "boolean", "float", "whole", "image", "null", "other"]
USES: tuple[Use, ...] = get_args(Use)
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The reason why a use is not possible; row None is the whole column."""

    row: int | None
    reason: str


def misfit(use: Use, kind: Kind, type_name: str, *, are_cells: bool) -> Problem | None:
    """Return the problem if a column's kind excludes a use."""
    if use == "text" and not are_cells and kind not in ("text", "null"):
        needed = "a text column is needed"
    elif use == "image" and kind != "image":
        needed = "an image column is needed (a struct of bytes and path)"
    else:
        return None
    return Problem(row=None, reason=f"{needed}, this one holds {type_name}")


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """One column of the training split, and the columns of that name in the other splits.

    Attributes:
        name: as in the file.
        type: for messages.
        kind: how a task can use it; ``whole``: floating-point numbers without fractions.
        are_cells: whether it comes from a delimited file, and can be read as texts in any case.
        num_classes: the number of classes if it is the label; None if too many to count.
        problems: by use and split.
    """

    name: str
    type: str
    kind: Kind
    are_cells: bool = False
    num_classes: int | None = None
    problems: Mapping[Use, Mapping[str, Problem]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        document: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "kind": self.kind,
            "cells": self.are_cells,
            "classes": {"count": self.num_classes},
        }
        problems = {
            use: {split: vars(problem) for split, problem in found.items()}
            for use, found in self.problems.items()
            if found
        }
        return {**document, "problems": problems} if problems else document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(
            name=document["name"],
            type=document["type"],
            kind=document["kind"],
            are_cells=document["cells"],
            num_classes=document["classes"]["count"],
            problems={
                use: {split: Problem(**entry) for split, entry in found.items()}
                for use, found in document.get("problems", {}).items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class DatasetProfile:
    """A data set's splits and columns.

    Attributes:
        rows: by split.
        columns: in the order of the training split.
    """

    rows: Mapping[str, int]
    columns: Sequence[ColumnProfile]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> ColumnProfile | None:
        """Return the column of a name; None if it does not exist."""
        return next((column for column in self.columns if column.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        columns = [column.to_json() for column in self.columns]
        return {"version": _VERSION, "splits": dict(self.rows), "columns": columns}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        columns = [ColumnProfile.from_json(entry) for entry in document["columns"]]
        return cls(rows=document["splits"], columns=columns)
