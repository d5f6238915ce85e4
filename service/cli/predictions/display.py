"""The answers as a table, and the rows without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from hifi.cli import output
from hifi.data.task_types import task_types
from hifi.errors import shorten
from service.cli.predictions.rows import place_of

if TYPE_CHECKING:
    from service.cli.predictions.rows import Row
    from service.client.documents import Prediction

FindLines: TypeAlias = Callable[[Collection[int]], Mapping[int, int]]  # of rows that have a line

_SHOWN_ERRORS, _SHOWN_ROWS = 20, 3
_SHOWN_CHARACTERS = 60  # of a text in a cell


def print_answers(rows: Sequence[Row], answers: Sequence[Prediction], *, names_jobs: bool) -> None:
    """Print a table of the rows that have an answer; columns without values are left out.

    The score of every label by its name is left out too: it would be wider than a screen.
    """
    cells: list[dict[str, Any]] = [
        {
            **{name: value for name, value in own.items() if not isinstance(value, Mapping)},
            "row": row.number,
            "input": row.shown,
        }
        for row, answer in zip(rows, answers, strict=True)
        for own in answer.get("answers", [answer])
        if "error" not in own
    ]
    used = {name for row in cells for name, value in row.items() if value is not None}
    fields = ["row", *(["job"] if names_jobs else []), *_shown_fields(), "input"]
    header = [name for name in fields if name in used]
    if cells:  # an input is shown as it is: its texts are short already, and paths are whole
        table = [
            [row[name] if name == "input" else _cell(row.get(name)) for name in header]
            for row in cells
        ]
        output.print_table(header, table)


def _shown_fields() -> list[str]:
    """Return the fields of answers, those of all task types."""
    fields = (field for each in task_types() for field in each.answer.fields)
    return list(dict.fromkeys(field.name for field in fields))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, Mapping):  # an entity
        return f"{value.get('text')} ({value.get('label')})"
    if isinstance(value, str):
        return shorten(value, characters=_SHOWN_CHARACTERS)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class RowErrors:
    """The errors of rows, equal ones together; few are kept of any number of rows.

    Attributes:
        rows: all rows so far, with an answer or without.
        failed: those without.
        has_more: whether some errors are too many to be reported.
    """

    def __init__(self) -> None:
        self.rows = self.failed = 0
        self.has_more = False
        self._counts: Counter[str] = Counter()
        self._first_rows: dict[str, list[int]] = {}

    def add(self, answer: Prediction) -> None:
        """Add the answer of the next row."""
        self.rows += 1
        failures = [own["error"] for own in answer.get("answers", [answer]) if "error" in own]
        self.failed += bool(failures)
        for text in dict.fromkeys(f"{each['message']} ({each['code']})" for each in failures):
            self._count(text)

    def _count(self, text: str) -> None:
        if text not in self._first_rows and len(self._first_rows) == _SHOWN_ERRORS:
            self.has_more = True
            return
        self._counts[text] += 1
        first_rows = self._first_rows.setdefault(text, [])
        if len(first_rows) < _SHOWN_ROWS:
            first_rows.append(self.rows)

    def report(self, find_lines: FindLines) -> None:
        """Print the errors to stderr, each with its first rows and their lines."""
        if not self.failed:
            return
        lines = find_lines({row for rows in self._first_rows.values() for row in rows})
        for text, rows in self._first_rows.items():
            places = ", ".join(place_of(row, lines.get(row)) for row in rows)
            more = self._counts[text] - len(rows)
            rest = f" and {more} more" if more else ""
            output.fail(f"{places}{rest}: {text}")
