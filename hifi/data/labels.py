"""Class labels: convert values to labels, and find the classes of a column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hifi.data.cells import BOOLEANS, MISSING, PADDING, number
from hifi.data.classes.names import find_alike
from hifi.data.profile import Problem, first_problem
from hifi.errors import quoted, shorten

if TYPE_CHECKING:
    from hifi.data.scan import ColumnScan

Label = str | int
_NAMED_CLASSES = 20
_NAMED_CHARACTERS = 200  # a profile has messages for up to a thousand columns
_NO_LABEL = -1  # as data sets of the hub mark the rows of an unlabelled split
_USABLE = ("text", "integer", "boolean", "whole", "null")


def train_labels(column: ColumnScan) -> tuple[tuple[Label, ...] | None, Problem | None]:
    """Read the labels of the training split, which decide the classes.

    Returns:
        The classes, in the order of the logits, or None if there are too many to count; and the
        problem that prevents a classification.
    """
    problem, found = read_distinct(column, label_reader(column))
    if column.distinct.is_full:
        return None, problem
    return order_classes(found, names=column.class_names), problem or too_few(found)


def other_labels(column: ColumnScan, *, known: tuple[Label, ...] | None) -> Problem | None:
    """Check the labels of another split with the classes of the training split.

    Args:
        column: of the other split.
        known: the classes; None if they are not known.
    """
    if known is None:
        return None if column.are_cells else read_distinct(column, label_reader(column))[0]
    problem, found = read_distinct(column, label_reader(column, known=known))
    return problem or first_unknown(found, known=known)


def is_unlabelled(column: ColumnScan, *, known: Sequence[Label]) -> bool:
    """Return whether a split without labels has this label column.

    Args:
        column: of the split.
        known: the classes of the training split; none for numbers.

    Returns:
        True if every label is missing, blank or -1, in any notation, and that is no class.
    """
    if column.kind not in _USABLE or column.distinct.is_full or column.unfit is not None:
        return False
    read = label_reader(column, known=known)
    return not any(_is_label(value, read=read, known=known) for value in column.distinct.rows)


def _is_label(value: object, *, read: Callable[[object], Label], known: Sequence[Label]) -> bool:
    found = number(value) if isinstance(value, str) else value
    if found not in (None, _NO_LABEL):
        return True
    try:
        label = read(value)
    except ValueError:  # missing, or -1 in a column that names its classes
        return False
    return label in known or (found == _NO_LABEL and _NO_LABEL in map(number, map(str, known)))


def order_classes(labels: Collection[Label], *, names: tuple[str, ...] | None) -> tuple[Label, ...]:
    """Return the classes, in the order of the logits.

    Args:
        labels: those that occur.
        names: of a column that names its classes; they keep their order.

    Returns:
        The names; else the labels, sorted: numbers by value, texts by code point.
    """
    return names or tuple(sorted(set(labels), key=lambda label: (isinstance(label, str), label)))


def too_few(labels: Collection[Label]) -> Problem | None:
    """Return the problem if all labels are the same, else None."""
    present = set(labels)
    if len(present) != 1:
        return None
    same = quoted(present.pop())
    reason = f"every row has the label {same}; at least two classes must occur"
    return Problem(row=None, reason=reason)


def first_unknown(found: Mapping[Label, int], *, known: Collection[Label]) -> Problem | None:
    """Return the problem of the first label that the training split does not have, if there is one.

    Args:
        found: the first row of each label.
        known: the labels of the training split, in their order.
    """
    classes = set(known)
    unknown = [label for label in found if label not in classes]
    if not unknown:
        return None
    label = min(unknown, key=found.__getitem__)
    return unknown_label(label, row=found[label], known=tuple(known))


def unknown_label(label: Label, *, row: int, known: Sequence[Label]) -> Problem:
    """Return the problem of a label that the training split does not have."""
    shown: list[str] = []
    for name in map(quoted, known[:_NAMED_CLASSES]):
        if sum(map(len, shown)) + len(name) > _NAMED_CHARACTERS:
            break
        shown.append(name)
    classes = ", ".join([*shown, "…"] if len(known) > len(shown) else shown)
    reason = f"the label {quoted(label)} does not occur in train; known are {classes}"
    similar = [str(name) for name in known if find_alike([str(label), str(name)])]
    if similar:
        reason += f"; it looks like {shorten(ascii(similar[0]), characters=_NAMED_CHARACTERS)}"
    return Problem(row=row, reason=reason)


def label_reader(column: ColumnScan, *, known: Sequence[Label] = ()) -> Callable[[object], Label]:
    """Return a function that converts a value of a column to a label.

    Args:
        column: contains the values.
        known: the classes of the training split, if known; cells are matched with them.

    Returns:
        A function that returns integers; texts for a column of texts, of booleans (``false`` and
        ``true``) or of numbers with names. Whole floating-point numbers become integers; of cells
        only those written as in :mod:`hifi.data.cells`. It raises ValueError with the reason if a
        value is not a label.
    """
    looks = column.appearance.looks
    are_integral = column.appearance.are_integral
    class_of = {str(label): label for label in known}
    is_usable = column.kind in _USABLE or (column.are_cells and bool(known))

    def read(value: object) -> Label:
        if column.are_cells and isinstance(value, str):
            value = (
                _by_classes(value, class_of=class_of, are_floats=looks == "float64")
                if known
                else _by_looks(value, looks, are_integral=are_integral)
            )
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError("the label is missing")
        if not is_usable:
            raise ValueError(
                "a label must be a whole number, a text or a boolean; this column holds "
                f"{column.type}"
            )
        label = as_label(value, names=column.class_names)
        return class_of.get(str(label), label)  # a file with types and one without agree

    return read


def as_label(value: object, *, names: tuple[str, ...] | None) -> Label:
    """Convert a value to a label.

    Args:
        value: neither missing nor NaN.
        names: of a column that names its classes.

    Raises:
        ValueError: the value is blank, or a number without a name.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return int(value)
    if isinstance(value, int):
        if names is None:
            return value
        if not 0 <= value < len(names):
            raise ValueError(f"the label {value} has no name; names are for 0..{len(names) - 1}")
        return names[value]
    text = str(value)
    if not text.strip():
        raise ValueError("the label is empty")
    return text


def _by_looks(cell: str, looks: str, *, are_integral: bool) -> object:
    """Convert a cell of the training split to the type that all cells of its column look like."""
    word = cell.strip(PADDING)
    if looks == "string":
        return cell
    if word in MISSING:
        return None
    if looks == "float64":
        return number(word) if are_integral else cell
    return int(word) if looks == "int64" else word.lower()


def _by_classes(cell: str, *, class_of: Mapping[str, Label], are_floats: bool) -> object:
    """Convert a cell to one of the known classes if it matches one."""
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


def read_distinct(
    column: ColumnScan, read: Callable[[object], Label]
) -> tuple[Problem | None, dict[Label, int]]:
    """Read every distinct value; return the first problem, and the first row of each label."""
    problems = []
    found: dict[Label, int] = {}
    for value, row in _values(column):
        try:
            found.setdefault(read(value), row)
        except ValueError as error:
            problems.append(Problem(row=row, reason=str(error)))
    return first_problem(problems), found


def _values(column: ColumnScan) -> Iterator[tuple[object, int]]:
    """Yield the distinct values with their first rows, including null, NaN and blank ones."""
    for value, row in ((None, column.missing), (math.nan, column.nan)):
        if row is not None:
            yield value, row
    if column.kind not in _USABLE and not column.are_cells:
        yield column.type, 1  # any value is refused, for its type
        return
    if column.blank is not None and column.kind == "text":
        yield "", column.blank
    yield from column.distinct.rows.items()
