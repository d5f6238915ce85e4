"""Labels as a classification would read them, from the different values of a column.

The rules are the library's (``hifi.data.columns``); a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from hifi.data.cells import BOOLEANS, MISSING, PADDING, number
from hifi.data.profile import Problem
from hifi.data.types import is_text, type_name
from service.datasets.checking.exchange import quoted

if TYPE_CHECKING:
    from hifi.data.seen import Seen, Value

Label = str | int
_NAMED_CLASSES = 20
_NAMED_LETTERS = 200  # a profile keeps what is said of up to a thousand columns


class _NoLabelError(Exception):
    """A value that is no label; says why."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A column's classes.

    Attributes:
        classes: in the order of the logits; None where they are too many to be counted.
        problem: what stands in the way of a classification.
    """

    classes: tuple[Label, ...] | None
    problem: Problem | None


def train_labels(seen: Seen) -> Labels:
    """Read the labels of the training split, which tell the classes."""
    problem, found = _read(seen, _reader(seen))
    if seen.distinct.is_full:
        return Labels(classes=None, problem=problem)
    present = sorted(set(found), key=lambda label: (isinstance(label, str), label))
    if problem is None and len(present) < 2:
        problem = Problem(
            row=None,
            reason=f"every row has the label {quoted(present[0])}; at least two classes must occur",
        )
    return Labels(classes=seen.class_names or tuple(present), problem=problem)


def other_labels(seen: Seen, *, known: tuple[Label, ...] | None) -> Problem | None:
    """Read the labels of another split by the classes of the training split.

    Args:
        seen: the column in the other split.
        known: the classes; None where they are not known.
    """
    if known is None:
        return None if seen.are_cells else _read(seen, _reader(seen))[0]
    problem, found = _read(seen, _reader(seen, known=known))
    if problem is not None:
        return problem
    unknown = set(found).difference(known)
    if not unknown:
        return None
    row, label = min((found[label], label) for label in unknown)
    return Problem(
        row=row,
        reason=f"the label {quoted(label)} does not occur in train; known are {_listed(known)}",
    )


def _listed(known: tuple[Label, ...]) -> str:
    """Name the first classes."""
    shown: list[str] = []
    for name in map(quoted, known[:_NAMED_CLASSES]):
        if sum(map(len, shown)) + len(name) > _NAMED_LETTERS:
            break
        shown.append(name)
    return ", ".join([*shown, "…"] if len(known) > len(shown) else shown)


def _read(seen: Seen, read: Callable[[Value], Label]) -> tuple[Problem | None, dict[Label, int]]:
    """Read every different value; give the first problem, and the first row of each label."""
    problems = [
        Problem(row=row, reason=reason) for row, reason in _row_problems(seen) if row is not None
    ]
    found: dict[Label, int] = {}
    for value, row in seen.distinct.rows.items():
        try:
            found.setdefault(read(value), row)
        except _NoLabelError as error:
            problems.append(Problem(row=row, reason=str(error)))
    return min(problems, key=lambda problem: problem.row or 0, default=None), found


def _row_problems(seen: Seen) -> list[tuple[int | None, str]]:
    """List what no different value shows, in the order in which a row is checked."""
    if seen.are_cells:
        return []
    missing = [(seen.missing, "the label is missing"), (seen.nan, "the label is missing")]
    is_number = pa.types.is_integer(seen.kind) or pa.types.is_boolean(seen.kind)
    is_usable = is_text(seen.kind) or is_number or pa.types.is_null(seen.kind)
    if not is_usable and not (pa.types.is_floating(seen.kind) and seen.are_whole):
        return [*missing, (1, _unusable(seen))]
    if is_text(seen.kind):
        return [*missing, (seen.blank, "the label is empty")]
    return missing


def _unusable(seen: Seen) -> str:
    return (
        "a label must be a whole number, a text or a boolean; this column holds "
        f"{seen.appearance.looks if seen.are_cells else type_name(seen.kind)}"
    )


def _reader(seen: Seen, *, known: tuple[Label, ...] = ()) -> Callable[[Value], Label]:
    """Give what makes a label of one different value."""
    looks = seen.appearance.looks
    class_of = {str(label): label for label in known}

    def read_cell(cell: str) -> object:
        if known:
            return _by_classes(cell, class_of=class_of, are_floats=looks == "float64")
        return _by_looks(cell, looks)

    def read(value: Value) -> Label:
        content = read_cell(value) if seen.are_cells and isinstance(value, str) else value
        if content is None:
            raise _NoLabelError("the label is missing")
        if seen.are_cells and not known and looks == "float64" and not seen.appearance.are_whole:
            raise _NoLabelError(_unusable(seen))
        return _as_label(content, names=seen.class_names)

    return read


def _as_label(content: object, *, names: tuple[str, ...] | None) -> Label:
    if isinstance(content, bool):
        return str(content).lower()
    if isinstance(content, float):
        return int(content)
    if isinstance(content, int):
        if names is not None and not 0 <= content < len(names):
            raise _NoLabelError(
                f"the label {content} has no name; names are for 0..{len(names) - 1}"
            )
        return content if names is None else names[content]
    text = str(content)
    if not text.strip():
        raise _NoLabelError("the label is empty")
    return text


def _by_looks(cell: str, looks: str) -> object:
    """Read a label of the training split as what all cells of its column look like."""
    word = cell.strip(PADDING)
    if looks == "string":
        return cell
    if word in MISSING:
        return None
    if looks == "float64":
        return number(word)
    return int(word) if looks == "int64" else word.lower()


def _by_classes(cell: str, *, class_of: Mapping[str, Label], are_floats: bool) -> object:
    """Read a label as one of the known classes, where it can be one."""
    word = cell.strip(PADDING)
    if cell in class_of:
        return class_of[cell]
    value = number(word) if are_floats else None
    if isinstance(value, float) and value.is_integer():
        word = str(int(value))
    if isinstance(class_of.get(word), int):
        return class_of[word]
    if word.lower() in class_of and any(re.fullmatch(words, word) for words in BOOLEANS):
        return word.lower()
    return None if word in MISSING else cell
