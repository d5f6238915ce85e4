"""Find the columns of a multiple-choice task: texts, choices and the label."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hifi.data.numbering import find_numbering, first_beyond
from hifi.data.profile import Problem
from hifi.data.task_types import FEWEST_CHOICES, MOST_CHOICES, MULTIPLE_CHOICE

if TYPE_CHECKING:
    from hifi.data.profile import ColumnProfile, DatasetProfile
    from hifi.data.spec import TaskSpec

_LAYOUT = MULTIPLE_CHOICE.layouts[0]
_ABOUT, _CHOICES = _LAYOUT.inputs
_FIELDS = frozenset(_LAYOUT.fields)
# Beginnings of the names of columns with a choice each: ending0, choice1, option_a, …
_PREFIXES = ("ending", "choice", "option", "answer", "alternative", "sol", "solution")
_NUMBERED = re.compile(r"(.*?)[ _-]?([0-9]{1,2}|[A-Za-z])")
# Of more than two columns of texts, these are what the choices are about.
_TEXTS = (
    ("startphrase",),
    ("ctx",),
    ("article", "question"),
    ("passage", "question"),
    ("context", "question"),
    ("premise", "question"),
    ("sent1", "sent2"),
    ("question",),
    ("premise",),
    ("context",),
)
_IDENTIFIER = re.compile(r"(.*[ _-])?(id|idx|index)", re.IGNORECASE)


def find_choice_task(spec: TaskSpec, profile: DatasetProfile) -> TaskSpec | None:
    """Infer a multiple-choice task.

    If neither type nor choices are named, the choices must have usual names, and the label too,
    which has to number them.

    Args:
        spec: the parts that are set do not change.
        profile: of the data set.

    Returns:
        A spec with type and columns; None if the columns are for another task, or cannot be told.
    """
    is_other = spec.type not in (None, MULTIPLE_CHOICE.name) or not set(spec.named) <= _FIELDS
    if is_other:
        return None
    is_certain = spec.type is not None or bool(spec.choices)
    taken = {*spec.text, *spec.label_columns}
    choices = spec.choices or _find_choices(profile, taken, is_certain=is_certain)
    if not choices:
        return None
    label = spec.label or _find_label(profile, choices, {*taken, *choices}, is_certain=is_certain)
    if label is None:
        return None
    labels = (label,) if isinstance(label, str) else label
    text = spec.text or _find_text(profile, {*choices, *labels})
    if text is None:
        return None
    return replace(spec, type=MULTIPLE_CHOICE.name, text=text, choices=choices, label=label)


def missing_field(spec: TaskSpec, profile: DatasetProfile) -> str:
    """Return the field of the first columns that a multiple-choice task lacks.

    Args:
        spec: of which :func:`find_choice_task` makes no task, although its type is set.
        profile: of the data set.
    """
    taken = {*spec.text, *spec.label_columns}
    choices = spec.choices or _find_choices(profile, taken, is_certain=True)
    if not choices:
        return _CHOICES.field
    label = spec.label or _find_label(profile, choices, {*taken, *choices}, is_certain=True)
    return _LAYOUT.label.field if label is None else _ABOUT.field


def label_problem(task: TaskSpec, profile: DatasetProfile, *, split: str) -> Problem | None:
    """Return the first row of a split whose label is none of its choices.

    Args:
        task: with all columns of a multiple-choice task.
        profile: of the data set.
        split: its name.
    """
    (name,) = task.label_columns
    column, count = profile.column(name), _count(task.choices, profile)
    if column is None or count is None:
        return None
    train = column.choice_rows.get("train", {})
    if not train:
        reason = "the labels must be the numbers or the letters of the right choices"
        return Problem(row=None, reason=reason) if split == "train" else None
    numbering, problem = find_numbering(train, count=count)
    if split == "train" or numbering is None:
        return problem if split == "train" else None
    return first_beyond(column.choice_rows.get(split, {}), numbering=numbering)


def _count(choices: Sequence[str], profile: DatasetProfile) -> int | None:
    """Return the number of choices of a row; None if it is not known."""
    if len(choices) > 1:
        return len(choices)
    column = profile.column(choices[0])
    return None if column is None else column.num_choices


def _find_choices(profile: DatasetProfile, taken: set[str], *, is_certain: bool) -> tuple[str, ...]:
    """Return a column of lists, or several columns of texts; empty if none can be told."""
    free = [each for each in profile.columns if each.name not in taken and each.left_out is None]
    lists = [each.name for each in free if (each.num_choices or 0) >= FEWEST_CHOICES]
    usual = [name for name in _CHOICES.names if name in lists]
    if usual:
        return (usual[0],)
    series = list(_series([each.name for each in free if each.kind == "text"]))
    named = [names for prefix, names in series if prefix.lower() in _PREFIXES]
    if len(named) == 1:
        return named[0]
    if not is_certain or named:
        return ()
    found = [(name,) for name in lists] + [names for _, names in series]
    return found[0] if len(found) == 1 else ()


def _series(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield columns whose names differ in a number or a letter, by what precedes it.

    They count from 0, 1, A or a, without gaps.
    """
    families: dict[str, dict[str, str]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found is not None and found[1]:
            families.setdefault(found[1], {})[found[2]] = name
    for prefix, members in families.items():
        if not FEWEST_CHOICES <= len(members) <= MOST_CHOICES:
            continue
        for counts in _counts(len(members)):
            if set(counts) == set(members):
                yield prefix, tuple(members[each] for each in counts)


def _counts(size: int) -> Iterator[list[str]]:
    yield [str(number) for number in range(size)]
    yield [str(number) for number in range(1, size + 1)]
    yield list(string.ascii_uppercase[:size])
    yield list(string.ascii_lowercase[:size])


def _find_label(
    profile: DatasetProfile, choices: Sequence[str], taken: set[str], *, is_certain: bool
) -> str | None:
    free = [each for each in profile.columns if each.name not in taken and each.left_out is None]
    usual = [column for name in _LAYOUT.label.names for column in free if column.name == name]
    if is_certain and usual:
        return usual[0].name  # whether its rows fit is checked later
    fitting = [each.name for each in usual or free if _numbers(each, profile, choices)]
    return fitting[0] if len(fitting) == 1 and (usual or is_certain) else None


def _numbers(column: ColumnProfile, profile: DatasetProfile, choices: Sequence[str]) -> bool:
    """Return whether the labels of a column number the choices."""
    count = _count(choices, profile)
    if not column.choice_rows or count is None:
        return False
    return find_numbering(column.choice_rows["train"], count=count)[0] is not None


def _find_text(profile: DatasetProfile, taken: set[str]) -> tuple[str, ...] | None:
    """Return the columns of texts that the choices are about, at most two; None if in doubt."""
    names = [
        each.name
        for each in profile.columns
        if each.name not in taken and each.left_out is None and each.kind == "text"
    ]
    usual = [texts for texts in _TEXTS if set(texts) <= set(names)]
    if usual:
        return usual[0]
    names = [name for name in names if not _IDENTIFIER.fullmatch(name)]
    return tuple(names) if len(names) <= _ABOUT.most else None
