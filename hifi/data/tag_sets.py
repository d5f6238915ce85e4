"""The tags of a column of lists: their scheme, the classes of words, and rows that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hifi.data.labels import Label, as_label, first_unknown
from hifi.data.profile import Problem, first_of_rows, first_problem
from hifi.data.tags import EDGE, OUTSIDE, Scheme, find_scheme, first_misplaced, tag_labels, types_of
from hifi.errors import quoted

if TYPE_CHECKING:
    from hifi.data.scan import ColumnScan


@dataclass(frozen=True)
class TagSet:
    """What the tags of a training split mean.

    Attributes:
        scheme: of the tags.
        types: of the entities; of the scheme ``WORDS`` the tags themselves.
        labels: the classes of words, in the order of the logits.
    """

    scheme: Scheme
    types: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of_types(cls, types: Sequence[str]) -> TagSet:
        """Return the tags of entities of some types, which have no tags of their own."""
        ordered = tuple(sorted(types))
        return cls("BIO", ordered, tag_labels(ordered))


def train_tags(column: ColumnScan) -> tuple[TagSet | None, Problem | None]:
    """Read the tags of the training split.

    Returns:
        What they mean, or None if that cannot be told; and the problem that prevents a task.
    """
    if column.kind == "spans":
        return _train_spans(column)
    if column.kind != "list":
        return None, None
    try:
        pairs = _named_pairs(column)
        names = column.class_names
        scheme = find_scheme(pairs, names=names or ())
    except ValueError as error:
        return None, _gap(column) or Problem(row=None, reason=str(error))
    found = {tag for pair in pairs for tag in pair} - {EDGE}
    types = types_of(names or found, scheme=scheme)
    labels = tuple(names or types) if scheme == "WORDS" else tag_labels(types, names=names)
    return TagSet(scheme, tuple(types), labels), (
        _gap(column) or _too_few(found, scheme) or first_misplaced(pairs, scheme=scheme)
    )


def other_spans(column: ColumnScan, *, known: TagSet | None) -> Problem | None:
    """Check the labels of spans of another split with those of the training split.

    Args:
        column: of the other split; it holds spans, or nothing but empty or missing lists.
        known: as for :func:`other_tags`.
    """
    if column.kind != "spans":
        filled = np.flatnonzero(column.lists.lengths) + 1
        rows = [(column.missing, "the list of spans is missing")]
        rows += [(int(row), "the list has an entry that is no span") for row in filled[:1]]
        return first_of_rows(rows)
    labels: dict[Label, int] = {str(label): row for label, row in column.distinct.rows.items()}
    return None if known is None else first_unknown(labels, known=known.types)


def other_tags(column: ColumnScan, *, known: TagSet | None) -> Problem | None:
    """Check the tags of another split with those of the training split.

    Args:
        column: of the other split.
        known: the tags of the training split; None if they cannot be told.
    """
    try:
        pairs = _named_pairs(column)
    except ValueError as error:
        return _gap(column) or Problem(row=None, reason=str(error))
    problem = _gap(column)
    if problem is not None or known is None:
        return problem
    rows: dict[Label, int] = {}
    for pair, row in pairs.items():
        for kind in types_of(set(pair) - {EDGE}, scheme=known.scheme):
            rows[kind] = min(row, rows.get(kind, row))
    unknown = first_unknown(rows, known=known.types)
    return unknown or first_misplaced(pairs, scheme=known.scheme)


def _train_spans(column: ColumnScan) -> tuple[TagSet | None, Problem | None]:
    if column.distinct.is_full:
        return None, Problem(row=None, reason="the spans have too many different labels")
    types = {str(label) for label in column.distinct.rows}
    if not types:
        return None, Problem(row=None, reason="no row has a span")
    return TagSet.of_types(sorted(types)), None


def tag_reader(column: ColumnScan) -> Callable[[Sequence[object] | None], list[str]]:
    """Return a function that converts a list to its tags: integers to their names.

    It raises ValueError with the reason if an entry has no name.

    Args:
        column: contains the lists.
    """

    def read(values: Sequence[object] | None) -> list[str]:
        return [str(as_label(value, names=column.class_names)) for value in values or ()]

    return read


def _named_pairs(column: ColumnScan) -> dict[tuple[str, str], int]:
    """Return the pairs of tags that follow each other, with integers as their names.

    Raises:
        ValueError: the entries are no tags, or too many different ones.
    """
    if not column.lists.has_all_pairs:
        raise ValueError("the lists have too many different tags")
    return {
        (_name(first, column), _name(second, column)): row
        for (first, second), row in reversed(column.lists.pairs.items())
    }


def _name(tag: str | int, column: ColumnScan) -> str:
    if tag == EDGE:
        return EDGE
    if isinstance(tag, int) and column.class_names is None:
        raise ValueError(
            f"the tags are integers without names, as {tag}: use texts as 'B-person' and 'O', or a "
            "column with names (a ClassLabel)"
        )
    return str(as_label(tag, names=column.class_names))


def _gap(column: ColumnScan) -> Problem | None:
    """Return the first row without a list of tags, or with an entry that is none."""
    problems = [] if column.lists.gap is None else [column.lists.gap]
    if column.missing is not None:
        problems.append(Problem(row=column.missing, reason="the list of tags is missing"))
    for (_, tag), row in column.lists.pairs.items():
        if tag == EDGE:
            continue
        try:
            as_label(tag, names=column.class_names)
        except ValueError as error:
            problems.append(Problem(row=row, reason=str(error)))
    return first_problem(problems)


def _too_few(tags: set[str], scheme: Scheme) -> Problem | None:
    """Return the problem if there is nothing to learn, else None."""
    if scheme != "WORDS" and not tags - {OUTSIDE}:
        return Problem(row=None, reason=f"every word has the tag {OUTSIDE!r}: there is no entity")
    if len(tags) < 2:
        only = quoted(next(iter(tags), ""))
        return Problem(row=None, reason=f"every word has the tag {only}; two tags must occur")
    return None
