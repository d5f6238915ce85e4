"""Several labels of a row: lists of labels, or one column of 0 and 1 for each label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from hifi.data.labels import (
    Label,
    as_label,
    first_unknown,
    label_reader,
    order_classes,
    read_distinct,
)
from hifi.data.profile import Problem, first_problem
from hifi.errors import quoted

if TYPE_CHECKING:
    from hifi.data.scan import ColumnScan

_FLAGS: Mapping[Label, bool] = {0: False, 1: True, "false": False, "true": True}


def train_sets(column: ColumnScan) -> tuple[tuple[Label, ...] | None, Problem | None]:
    """Read the labels in the lists of the training split.

    Returns:
        The labels, in the order of the logits, or None if there are too many to count; and the
        problem that prevents a task with several labels.
    """
    problem, found = _read(column)
    if column.distinct.is_full:
        return None, problem
    return order_classes(found, names=column.class_names), problem or too_few_labels(found)


def other_sets(column: ColumnScan, *, known: Sequence[Label] | None) -> Problem | None:
    """Check the lists of another split with the labels of the training split.

    Args:
        column: of the other split.
        known: the labels; None if they are not known.
    """
    problem, found = _read(column, known=known or ())
    if problem is not None or known is None:
        return problem
    return first_unknown(found, known=known)


def too_few_labels(labels: Collection[Label]) -> Problem | None:
    """Return the problem if the lists have fewer than two labels together, else None."""
    present = set(labels)
    if len(present) > 1:
        return None
    only = f"only the label {quoted(present.pop())} occurs" if present else "no row has a label"
    return Problem(row=None, reason=f"{only}; at least two labels must occur")


def set_reader(
    column: ColumnScan, *, known: Sequence[Label] = ()
) -> Callable[[Sequence[object] | None], list[Label]]:
    """Return a function that converts a list to its labels.

    It raises ValueError with the reason if a value is not a list of different labels. An integer
    becomes its name if the column has names, and labels of the training split are matched by what
    they look like: 1 is ``"1"``.

    Args:
        column: contains the lists.
        known: the labels of the training split, if known.
    """
    class_of = {str(label): label for label in known}

    def read(values: Sequence[object] | None) -> list[Label]:
        if values is None:
            raise ValueError("the list of labels is missing")
        labels = []
        for value in values:
            if value is None:
                raise ValueError("the list has an entry without a label")
            label = as_label(value, names=column.class_names)
            labels.append(class_of.get(str(label), label))
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the list has the label {quoted(label)} more than once")
        return labels

    return read


def flag_problem(column: ColumnScan) -> Problem | None:
    """Return the first row that is neither 0 nor 1, in a column that marks the rows of a label."""
    return column.misfit("flag") or read_distinct(column, flag_reader(column))[0]


def flag_reader(column: ColumnScan) -> Callable[[object], bool]:
    """Return a function that converts a value of a column of 0 and 1 (false, true) to a bool.

    It raises ValueError with the reason if a value is another one.
    """
    read_label = label_reader(column)

    def read(value: object) -> bool:
        label = read_label(value)
        if label not in _FLAGS:
            raise ValueError(f"0 or 1 is needed, not {quoted(label)}")
        return _FLAGS[label]

    return read


def _read(
    column: ColumnScan, *, known: Sequence[Label] = ()
) -> tuple[Problem | None, dict[Label, int]]:
    """Read every distinct label; return the first problem, and the first row of each label."""
    problems = [] if column.listed is None else [column.listed]
    if column.missing is not None:
        problems.append(Problem(row=column.missing, reason="the list of labels is missing"))
    class_of = {str(label): label for label in known}
    found: dict[Label, int] = {}
    for value, row in column.distinct.rows.items():
        try:
            label = as_label(value, names=column.class_names)
        except ValueError as error:
            problems.append(Problem(row=row, reason=str(error)))
        else:
            found.setdefault(class_of.get(str(label), label), row)
    return first_problem(problems), found
