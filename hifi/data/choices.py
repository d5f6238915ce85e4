"""The choices of a row, and the rows whose choices or labels cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hifi.data.labels import Label, label_reader, read_distinct
from hifi.data.numbering import choice_label
from hifi.data.profile import Problem, first_of_rows, first_problem
from hifi.data.task_types import FEWEST_CHOICES, MOST_CHOICES

if TYPE_CHECKING:
    from hifi.data.scan import ColumnScan


def choice_rows(column: ColumnScan) -> tuple[dict[Label, int], Problem | None]:
    """Return the first row of each label of a choice, and the first row without one."""
    problem, found = read_distinct(column, label_reader(column))
    rows: dict[Label, int] = {}
    problems = [problem]
    for label, row in found.items():
        try:
            rows.setdefault(choice_label(label), row)
        except ValueError as error:
            problems.append(Problem(row=row, reason=str(error)))
    if column.distinct.is_full:
        problems.append(
            Problem(row=None, reason="there are too many labels for numbers of choices")
        )
    return rows, first_problem(problems)


def count_choices(column: ColumnScan) -> int | None:
    """Return the number of choices in the first list of a column; None if it has no lists."""
    if column.kind != "list" or column.lists.are_numbers:
        return None
    lengths = column.lists.lengths
    filled = lengths[lengths > 0]
    return int(filled[0]) if len(filled) else None


def choices_problem(column: ColumnScan, *, count: int | None) -> Problem | None:
    """Return the first row without choices, or with another number of them.

    Args:
        column: of lists.
        count: of the choices in the first row of the training split; None if it has none.
    """
    if column.lists.are_numbers:
        reason = f"lists of texts are needed, this column holds {column.type}"
        return Problem(row=None, reason=reason)
    rows = [(column.missing, "the list of choices is missing")]
    lengths = column.lists.lengths
    for is_bad, reason in (
        (lengths == 1, f"the row has 1 choice; at least {FEWEST_CHOICES} are needed"),
        (lengths > MOST_CHOICES, f"the row has more than {MOST_CHOICES} choices"),
        (
            (lengths > 1) & (lengths != (count or 0)),
            f"the row has another number of choices than the {count} of the first row of train",
        ),
    ):
        rows += [(int(row), reason) for row in (np.flatnonzero(is_bad) + 1)[:1]]
    return first_problem([column.lists.gap, column.lists.too_long, first_of_rows(rows)])
