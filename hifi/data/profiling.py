"""Build a data set's profile from the scans of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hifi.data.labels import other_labels, train_labels
from hifi.data.profile import USES, ColumnProfile, DatasetProfile, Problem
from hifi.data.scan import ColumnScan
from hifi.errors import DataError, quoted

if TYPE_CHECKING:
    from hifi.data.task_types import Use

_NUMBERS = frozenset({"integer", "float", "whole"})
Columns = Mapping[str, ColumnScan]


def check_splits(splits: Mapping[str, Columns]) -> None:
    """Refuse splits with a column of another type than in the training split.

    A column may be missing; that matters only to a task that needs it.

    Raises:
        DataError: the types differ; the error has split and column.
    """
    for split, columns in splits.items():
        for name, column in splits["train"].items():
            other = columns.get(name)
            if other is not None and not _go_together(column, other):
                raise DataError(
                    f"the column holds {other.type}, in train it holds {column.type}",
                    column=name,
                    split=split,
                )


def _go_together(train: ColumnScan, other: ColumnScan) -> bool:
    first, second = train.kind, other.kind
    if "null" in (first, second) or (train.are_cells and other.are_cells):
        return True
    if "other" in (first, second):
        return bool(train.arrow_type == other.arrow_type)
    if (train.are_cells or other.are_cells) and "text" in (first, second):
        return True
    return first == second or {first, second} <= _NUMBERS


def make_profile(splits: Mapping[str, Columns], *, rows: Mapping[str, int]) -> DatasetProfile:
    """Return the possible uses of every column of the training split.

    Args:
        splits: the scans, by split and column; :func:`check_splits` accepts them.
        rows: of each split.
    """
    columns = [
        _profile_column(name, train, {split: found.get(name) for split, found in splits.items()})
        for name, train in splits["train"].items()
    ]
    return DatasetProfile(rows=rows, columns=columns)


def _profile_column(
    name: str, train: ColumnScan, scans: Mapping[str, ColumnScan | None]
) -> ColumnProfile:
    classes, label_problem = train_labels(train)
    problems: dict[Use, dict[str, Problem]] = {use: {} for use in USES}
    for split, column in scans.items():
        found: dict[Use, Problem | None]
        if column is None:
            found = dict.fromkeys(USES, Problem(row=None, reason=f"{split} has no such column"))
        else:
            is_train = split == "train"
            found = {
                "text": text_problem(column),
                "label": label_problem if is_train else other_labels(column, known=classes),
                "target": target_problem(column),
                "image": column.image,
            }
        for use, problem in found.items():
            if problem is not None:
                problems[use][split] = problem
    return ColumnProfile(
        name=name,
        type=train.type,
        kind=train.kind,
        are_cells=train.are_cells,
        num_classes=None if classes is None else len(classes),
        problems=problems,
    )


def text_problem(column: ColumnScan) -> Problem | None:
    """Return the first row without a text, in a column that can be read as texts."""
    if column.misfit("text") is not None:
        return None
    return _first([(column.blank, "the text is empty"), (column.missing, "the text is missing")])


def target_problem(column: ColumnScan) -> Problem | None:
    """Return the first row without a finite number."""
    found = column.appearance if column.are_cells else column
    rows: list[tuple[int | None, str]] = [(found.missing, "the target is missing")]
    if found.not_finite is not None:
        row, value = found.not_finite
        rows.append((row, f"the target {value} is not a finite number"))
    if column.are_cells:
        if column.appearance.not_number is not None:
            row, cell = column.appearance.not_number
            rows.append((row, f"a number is needed, not {quoted(cell)}"))
    elif column.kind not in ("null", *_NUMBERS):
        rows.append((1, f"a number is needed, this column holds {column.type}"))
    return _first(rows)


def _first(rows: list[tuple[int | None, str]]) -> Problem | None:
    """Return the problem of the lowest row, and of equal rows the first in the list."""
    problems = [Problem(row=row, reason=reason) for row, reason in rows if row is not None]
    return min(problems, key=lambda problem: problem.row or 0, default=None)
