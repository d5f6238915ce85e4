"""Build a data set's profile from the scans of its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hifi.data.answers import MISSING
from hifi.data.choices import choice_rows, choices_problem, count_choices
from hifi.data.formats.limits import too_many_characters
from hifi.data.label_sets import flag_problem, other_sets, train_sets
from hifi.data.labels import (
    Label,
    as_label,
    is_unlabelled,
    label_reader,
    other_labels,
    train_labels,
)
from hifi.data.list_scan import first_unequal
from hifi.data.profile import (
    USES,
    ColumnProfile,
    DatasetProfile,
    Problem,
    SingleClasses,
    first_of_rows,
    first_problem,
)
from hifi.data.run_warnings import are_many_classes
from hifi.data.scan import ColumnScan
from hifi.data.tag_sets import TagSet, other_spans, other_tags, train_tags
from hifi.data.task_types import MOST_CHOICES
from hifi.data.types import are_empty_lists
from hifi.errors import DataError, quoted

if TYPE_CHECKING:
    from hifi.data.task_types import Use

_NAMED_CLASSES = 20  # of more, a profile keeps no names
_NUMBERS = frozenset({"integer", "float", "whole"})
_LABEL_CHARACTERS = 1000  # of all labels of a column: a data set has up to a thousand columns
_MOST_LISTS = 8  # columns whose lengths are compared
_SINGLE_CLASSES = 5  # named of those that occur in a single row
Columns = Mapping[str, ColumnScan]
_Name = TypeVar("_Name")


def check_splits(splits: Mapping[str, Columns]) -> None:
    """Refuse splits with a column of another type than in the training split.

    A column may be missing; that matters only to a task that needs it.

    Raises:
        DataError: the types differ; the error has split and column.
    """
    for split, columns in splits.items():
        for name, column in splits["train"].items():
            other = columns.get(name)
            if other is None or column.unfit or other.unfit:
                continue
            if not _go_together(column, other):
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
    if {first, second} in ({"list", "spans"}, {"list", "answers"}):  # all of a split are empty
        return any(are_empty_lists(each.arrow_type) for each in (train, other))
    if (train.are_cells or other.are_cells) and "text" in (first, second):
        return True
    return first == second or {first, second} <= _NUMBERS


def make_profile(
    splits: Mapping[str, Columns],
    *,
    rows: Mapping[str, int],
    left_out: Mapping[str, int] | None = None,
) -> DatasetProfile:
    """Return the possible uses of every column of the training split.

    Args:
        splits: the scans, by split and column; :func:`check_splits` accepts them.
        rows: of each split.
        left_out: the rows of a labelling tool that nobody accepted, by split.
    """
    columns = [_profile_column(name, splits, rows=rows["train"]) for name in splits["train"]]
    skipped = {split: count for split, count in (left_out or {}).items() if count}
    return DatasetProfile(rows=rows, columns=columns, left_out=skipped)


def _profile_column(name: str, splits: Mapping[str, Columns], *, rows: int) -> ColumnProfile:
    train = splits["train"][name]
    scans = {split: found.get(name) for split, found in splits.items()}
    are_lists, are_answers = train.kind == "list", train.kind == "answers"
    read_classes = train_sets if are_lists else train_labels
    classes, label_problem = (None, None) if train.unfit else read_classes(train)
    tags, tags_problem = (None, None) if train.unfit else train_tags(train)
    count = None if classes is None else len(classes)
    # The values of other columns are nobody's business.
    labels = None if are_many_classes(count, rows=rows) else classes
    num_choices = None if train.unfit else count_choices(train)
    numbered = _find_choice_rows(scans)
    problems: dict[Use, dict[str, Problem]] = {use: {} for use in USES}
    for split, column in scans.items():
        found: dict[Use, Problem | None]
        if column is None:
            found = dict.fromkeys(USES, Problem(row=None, reason=f"{split} has no such column"))
        elif column.unfit is not None:
            found = dict.fromkeys(USES, column.unfit)
        else:
            check = other_sets if are_lists else other_labels
            label = label_problem if split == "train" else check(column, known=classes)
            found = {
                "text": text_problem(column),
                "label": None if are_lists else label,
                "labels": label if are_lists else None,
                "flag": None if train.misfit("flag") else flag_problem(column),
                "target": target_problem(column),
                "image": column.image,
                "words": words_problem(column) if are_lists else None,
                "choices": choices_problem(column, count=num_choices) if are_lists else None,
                "choice": numbered[split][1] if numbered else None,
                "tags": None,
                "spans": None,
                "answers": answers_problem(column, split=split) if are_answers else None,
            }
            if train.kind in ("list", "spans"):
                check_tags = other_tags if are_lists else other_spans
                found["tags" if are_lists else "spans"] = (
                    tags_problem if split == "train" else check_tags(column, known=tags)
                )
        for use, problem in found.items():
            if problem is not None:
                problems[use][split] = problem
    return ColumnProfile(
        name=name,
        type=train.type,
        kind=train.kind,
        are_cells=train.are_cells,
        num_classes=count,
        labels=None if labels is None else _short_labels(labels),
        single_classes=None if labels is None else _single_classes(train, labels),
        num_tags=None if tags is None else len(tags.labels),
        tags=_shown_tags(tags, rows=rows),
        num_choices=num_choices,
        choice_rows={split: found for split, (found, _) in numbered.items()},
        problems=problems,
        beside=_find_beside(name, splits),
        test_unlabelled="test" in scans and _is_unlabelled(scans["test"], known=classes or ()),
        left_out="unfit" if train.unfit else "index" if train.is_index else None,
    )


def _find_choice_rows(
    scans: Mapping[str, ColumnScan | None],
) -> dict[str, tuple[dict[Label, int], Problem | None]]:
    """Return the first row of each label of a choice, by split, and the first row without one.

    Empty if the training split has other labels.
    """
    there = {split: scan for split, scan in scans.items() if scan is not None and not scan.unfit}
    train = there.get("train")
    if train is None or train.misfit("choice") or train.distinct.is_full:
        return {}
    found = choice_rows(train)
    rows, _ = found
    if not rows or len(rows) > MOST_CHOICES or len(rows) < len(train.distinct.rows):
        return {}
    return {
        split: found if split == "train" else choice_rows(scan) for split, scan in there.items()
    }


def _find_beside(name: str, splits: Mapping[str, Columns]) -> dict[str, dict[str, Problem]]:
    """Return the first row of a column that does not fit another column, by its name and split."""
    found: dict[str, dict[str, Problem]] = {}
    for split, columns in splits.items():
        column = columns.get(name)
        for other, problem in () if column is None else _problems_beside(column, columns):
            found.setdefault(other, {})[split] = problem
    return found


def _problems_beside(column: ColumnScan, columns: Columns) -> Iterator[tuple[str, Problem]]:
    for other, problem in column.beside.items():
        if problem is not None:
            yield other, problem
    if column.kind != "list" or column.unfit is not None:
        return
    read = {other: scan for other, scan in columns.items() if scan.unfit is None}
    lists = [other for other, scan in read.items() if scan.kind == "list"][:_MOST_LISTS]
    for other in lists:
        problem = unequal_lists(column, columns[other])
        if problem is not None:
            yield other, problem


def _shown_tags(tags: TagSet | None, *, rows: int) -> tuple[str, ...] | None:
    """Return the classes of words if they are few and short enough to be stored."""
    if tags is None or are_many_classes(len(tags.types), rows=rows):
        return None
    labels = _short_labels(tags.labels)
    return None if labels is None else tuple(map(str, labels))


def _is_unlabelled(column: ColumnScan | None, *, known: Sequence[Label]) -> bool:
    return column is None or is_unlabelled(column, known=known)


def _short_labels(classes: Sequence[Label]) -> tuple[Label, ...] | None:
    """Return the classes if they are few and short enough to be stored."""
    return tuple(classes) if len("".join(map(str, classes))) <= _LABEL_CHARACTERS else None


def _single_classes(train: ColumnScan, classes: Sequence[Label]) -> SingleClasses | None:
    """Return the classes that occur in a single row, if there are any."""
    read = label_reader(train)
    if train.kind == "list":
        read = partial(as_label, names=train.class_names)
    rows: Counter[Label] = Counter()
    for value, count in train.distinct.counts.items():
        try:
            rows[read(value)] += count
        except ValueError:  # the column cannot be the label, which another function reports
            return None
    single = [label for label in classes if rows[label] == 1]
    if not single:
        return None
    return SingleClasses(count=len(single), some=tuple(single[:_SINGLE_CLASSES]))


def rows_with_problems(profile: DatasetProfile, *, split: str) -> set[int]:
    """Return the rows of a split that a profile names."""
    problems = (
        found.get(split)
        for each in profile.columns
        for found in (*each.problems.values(), *each.beside.values())
    )
    return {each.row for each in problems if each is not None and each.row is not None}


def add_lines(profile: DatasetProfile, lines: Mapping[str, Mapping[int, int]]) -> DatasetProfile:
    """Add to every problem the line of its row.

    Args:
        profile: without lines.
        lines: by split and row, as far as they are known.
    """

    def located(split: str, problem: Problem) -> Problem:
        line = None if problem.row is None else lines[split].get(problem.row)
        return replace(problem, line=line)

    def all_located(
        problems: Mapping[_Name, Mapping[str, Problem]],
    ) -> dict[_Name, dict[str, Problem]]:
        return {
            name: {split: located(split, problem) for split, problem in found.items()}
            for name, found in problems.items()
        }

    columns = [
        replace(
            column,
            problems=all_located(column.problems),
            beside=all_located(column.beside),
        )
        for column in profile.columns
    ]
    return replace(profile, columns=columns)


def text_problem(column: ColumnScan) -> Problem | None:
    """Return the first row without a text, in a column that can be read as texts."""
    if column.misfit("text") is not None:
        return None
    rows = [(column.blank, "the text is empty"), (column.missing, "the text is missing")]
    if column.too_long is not None:
        row, characters = column.too_long
        rows.append((row, too_many_characters(characters)))
    return first_of_rows(rows)


def unequal_lists(tags: ColumnScan, words: ColumnScan) -> Problem | None:
    """Return the first row whose lists differ in length; None if a column has no lists."""
    row = first_unequal(tags.lists, words.lists) if tags.kind == words.kind == "list" else None
    if row is None:
        return None
    mine, its = (each.lists.lengths[row - 1] for each in (tags, words))
    return Problem(row=row, reason=f"the row has {mine} tags and {its} words")


def answers_problem(column: ColumnScan, *, split: str) -> Problem | None:
    """Return the first row without a list of answers, or that a training split has no answer.

    Args:
        column: of answers; of another split than the training split also one of empty lists.
        split: its name.
    """
    if column.kind == "answers":
        is_empty = split == "train" and not column.has_answers
        return Problem(row=None, reason="no row has an answer") if is_empty else None
    filled = np.flatnonzero(column.lists.lengths) + 1
    rows = [(column.missing, MISSING)]
    rows += [(int(row), "the list has an entry that is no answer") for row in filled[:1]]
    return first_of_rows(rows)


def words_problem(column: ColumnScan) -> Problem | None:
    """Return the first row without words, in a column of lists."""
    if column.lists.are_numbers:
        return Problem(
            row=None, reason=f"lists of texts are needed, this column holds {column.type}"
        )
    problems = [column.lists.gap, column.lists.too_long]
    if column.missing is not None:
        problems.append(Problem(row=column.missing, reason="the list of words is missing"))
    return first_problem(problems)


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
    return first_of_rows(rows)
