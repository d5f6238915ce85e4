"""From what was seen of every split's columns to the data set's profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from hifi.data.labels import other_labels, train_labels
from hifi.data.profile import USES, ColumnProfile, DatasetProfile, Kind, Problem, Use
from hifi.data.seen import Seen
from hifi.data.types import is_image, is_text, type_name
from service.datasets.checking.exchange import Refusal, quoted

_BY_LOOKS: dict[str, Kind] = {
    "null": "null",
    "int64": "integer",
    "float64": "float",
    "bool": "boolean",
    "string": "text",
}
_BY_TYPE: dict[Kind, Callable[[pa.DataType], bool]] = {
    "text": is_text,
    "image": is_image,
    "null": pa.types.is_null,
    "boolean": pa.types.is_boolean,
    "integer": pa.types.is_integer,
}
_NUMBERS = frozenset({"integer", "float", "whole"})
Columns = Mapping[str, Seen]


def check_splits(splits: Mapping[str, Columns]) -> None:
    """Refuse splits of which a column holds another type than in the training split.

    A column may be missing: it hurts only the task that wants it.

    Raises:
        Refusal: it names split and column.
    """
    for split, columns in splits.items():
        for name, seen in splits["train"].items():
            other = columns.get(name)
            if other is not None and not _go_together(seen, other):
                raise Refusal(
                    f"the column holds {_type(other)}, in train it holds {_type(seen)}",
                    column=name,
                    split=split,
                )


def _go_together(train: Seen, other: Seen) -> bool:
    first, second = _kind(train), _kind(other)
    if "null" in (first, second) or (train.are_cells and other.are_cells):
        return True
    if "other" in (first, second):
        return bool(train.kind == other.kind)
    if train.are_cells or other.are_cells:
        return first == second or {first, second} <= _NUMBERS or "text" in (first, second)
    return first == second or {first, second} <= _NUMBERS


def make_profile(splits: Mapping[str, Columns], *, rows: Mapping[str, int]) -> DatasetProfile:
    """Say of every column of the training split what it can be used for.

    Args:
        splits: what was seen, by split and column; they go together.
        rows: of each split.
    """
    columns = []
    for name, seen in splits["train"].items():
        others = {split: found.get(name) for split, found in splits.items() if split != "train"}
        columns.append(_profile_column(name, seen, others))
    return DatasetProfile(rows=rows, columns=columns)


def _profile_column(name: str, train: Seen, others: Mapping[str, Seen | None]) -> ColumnProfile:
    labels = train_labels(train)
    problems: dict[Use, dict[str, Problem]] = {"text": {}, "label": {}, "target": {}, "image": {}}

    def note(use: Use, split: str, problem: Problem | None) -> None:
        if problem is not None:
            problems[use][split] = problem

    note("label", "train", labels.problem)
    for split, seen in {"train": train, **others}.items():
        if seen is None:
            for use in USES:
                note(use, split, Problem(row=None, reason=f"{split} has no such column"))
            continue
        if split != "train":
            note("label", split, other_labels(seen, known=labels.classes))
        note("text", split, _text_problem(seen))
        note("target", split, _target_problem(seen))
        note("image", split, _image_problem(seen))
    return ColumnProfile(
        name=name,
        type=_type(train),
        kind=_kind(train),
        are_cells=train.are_cells,
        num_classes=None if labels.classes is None else len(labels.classes),
        problems=problems,
    )


def _text_problem(seen: Seen) -> Problem | None:
    """Find the first row without a text, in a column that may be read as texts."""
    rows = [(seen.blank, "the text is empty")]
    if not seen.are_cells:
        if not is_text(seen.kind) and not pa.types.is_null(seen.kind):
            return None
        rows.append((seen.missing, "the text is missing"))
    return _first(rows)


def _target_problem(seen: Seen) -> Problem | None:
    """Find the first row without a number that can be regressed on."""
    found = seen.appearance if seen.are_cells else seen
    rows: list[tuple[int | None, str]] = [(found.missing, "the target is missing")]
    if found.not_finite is not None:
        row, value = found.not_finite
        rows.append((row, f"the target {value} is not a finite number"))
    if seen.are_cells:
        if seen.appearance.not_number is not None:
            row, cell = seen.appearance.not_number
            rows.append((row, f"a number is needed, here is {quoted(cell)}"))
    elif not pa.types.is_null(seen.kind) and _kind(seen) not in _NUMBERS:
        rows.append((1, f"a number is needed, this column holds {type_name(seen.kind)}"))
    return _first(rows)


def _image_problem(seen: Seen) -> Problem | None:
    return (
        None if seen.bad_image is None else Problem(row=seen.bad_image[0], reason=seen.bad_image[1])
    )


def _first(rows: list[tuple[int | None, str]]) -> Problem | None:
    """Give the problem of the lowest row; of one row the first that is listed."""
    problems = [Problem(row=row, reason=reason) for row, reason in rows if row is not None]
    return min(problems, key=lambda problem: problem.row or 0, default=None)


def _kind(seen: Seen) -> Kind:
    if seen.are_cells:
        looks = seen.appearance.looks
        return "whole" if looks == "float64" and seen.appearance.are_whole else _BY_LOOKS[looks]
    if pa.types.is_floating(seen.kind):
        return "whole" if seen.are_whole else "float"
    return next((kind for kind, test in _BY_TYPE.items() if test(seen.kind)), "other")


def _type(seen: Seen) -> str:
    if seen.are_cells:
        return seen.appearance.looks
    return "image" if is_image(seen.kind) else type_name(seen.kind)
