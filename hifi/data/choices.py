"""Multiple choice: the choices of a row, and how labels number them."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hifi.data.labels import Label, label_reader, read_distinct
from hifi.data.profile import Problem, first_of_rows, first_problem
from hifi.data.task_types import FEWEST_CHOICES, MOST_CHOICES
from hifi.errors import quoted

if TYPE_CHECKING:
    from hifi.data.scan import ColumnScan

_MOST_LETTERS = len(string.ascii_uppercase)


@dataclass(frozen=True)
class Numbering:
    """How the labels of a data set number the choices of a row.

    Attributes:
        first: the label of the first choice: 0, 1, ``A`` or ``a``.
        count: of the choices.
    """

    first: Label
    count: int

    @property
    def labels(self) -> tuple[Label, ...]:
        """The label of each choice; letters end at Z."""
        if isinstance(self.first, int):
            return tuple(range(self.first, self.first + self.count))
        start = string.ascii_letters.index(self.first)
        return tuple(string.ascii_letters[start : start + min(self.count, _MOST_LETTERS)])

    def index(self, label: Label) -> int:
        """Return the place of the right choice, from 0.

        Raises:
            ValueError: it is none of the choices.
        """
        if label not in self.labels:
            first, last = self.labels[0], self.labels[-1]
            raise ValueError(
                f"the label {quoted(label)} is none of the {self.count} choices, which are "
                f"numbered {first} to {last}"
            )
        return self.labels.index(label)


def choice_label(label: Label) -> Label:
    """Return a label as a number or a letter: a number in digits becomes an integer.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(label, str):
        word = label.strip()
        if word.isascii() and word.isdigit():
            return int(word)
        if len(word) == 1 and word in string.ascii_letters:
            return word
    elif label >= 0:
        return label
    raise ValueError(f"the label {quoted(label)} is neither a number nor a letter of a choice")


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


def find_numbering(
    rows: Mapping[Label, int], *, count: int
) -> tuple[Numbering | None, Problem | None]:
    """Return the numbering that the labels of a training split follow.

    Args:
        rows: the first row of each label, at least one.
        count: of the choices of a row.

    Returns:
        None if labels that begin at 0 and at 1 both fit; and the first row whose label is none of
        the choices.
    """
    by_row = sorted(rows, key=lambda label: rows[label])
    first: Label
    if isinstance(by_row[0], str):
        first = "A" if by_row[0].isupper() else "a"
    elif 0 in rows or count in rows or any(label not in range(1, count) for label in rows):
        first = 0 if 0 in rows else 1
    else:
        reason = (
            f"the labels may number the {count} choices from 0 or from 1: neither 0 nor {count} "
            "occurs"
        )
        return None, Problem(row=None, reason=reason)
    numbering = Numbering(first, count)
    return numbering, first_beyond(rows, numbering=numbering)


def first_beyond(rows: Mapping[Label, int], *, numbering: Numbering) -> Problem | None:
    """Return the first row whose label is none of the choices.

    Args:
        rows: the first row of each label.
        numbering: of the training split.
    """
    problems = []
    for label, row in rows.items():
        try:
            numbering.index(label)
        except ValueError as error:
            problems.append(Problem(row=row, reason=str(error)))
    return first_problem(problems)


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
