"""How the labels of a multiple-choice data set number the choices of a row."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from hifi.data.profile import Problem, first_problem
from hifi.errors import quoted

_MOST_LETTERS = len(string.ascii_uppercase)


@dataclass(frozen=True)
class Numbering:
    """How the labels of a data set number the choices of a row.

    Attributes:
        first: the label of the first choice: 0, 1, ``A`` or ``a``.
        count: of the choices.
    """

    first: str | int
    count: int

    @property
    def labels(self) -> tuple[str | int, ...]:
        """The label of each choice; letters end at Z."""
        if isinstance(self.first, int):
            return tuple(range(self.first, self.first + self.count))
        start = string.ascii_letters.index(self.first)
        return tuple(string.ascii_letters[start : start + min(self.count, _MOST_LETTERS)])

    def index(self, label: str | int) -> int:
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


def choice_label(label: str | int) -> str | int:
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


def first_beyond(rows: Mapping[str | int, int], *, numbering: Numbering) -> Problem | None:
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


def find_numbering(
    rows: Mapping[str | int, int], *, count: int
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
    first: str | int
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
