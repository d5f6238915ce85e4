"""The rows of a run: all of them, the paper's few per class, or any number; and those of trials.

* ``full``: the training split, capped; the validation split chooses the epoch and is reported, as
  most of these tasks have no public test labels. A ``test.jsonl`` is measured too. Of a task with
  one file, three tenths of its rows are for validation, drawn by the seed.
* ``16``: 16 rows of each class for training and 16 for validation, both drawn from the training
  split by the seed; the original validation split is the test set (section 4.1).
* any other N: N rows for training and N for validation, drawn and tested in the same way.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from hifi.errors import DataError, InvalidArgumentError

if TYPE_CHECKING:
    from benchmarks.paper.tasks import PaperTask

Rows = list[dict[str, Any]]
FULL = "full"
PER_CLASS = 16
_LEAST = 16  # rows, so that trials can hold out some of a class
_HELD_OUT = 5  # trials hold out every fifth row
_HELD_OUT_OF_ONE_FILE = 0.3
_MOST_OF_TRIALS = 2560  # rows


@dataclass(frozen=True, eq=False)
class Splits:
    """The rows of one run.

    Attributes:
        train: trained on.
        validation: chooses the best epoch.
        test: only measured; None if there is none.
    """

    train: Rows
    validation: Rows
    test: Rows | None = None


def check_shots(shots: str) -> str:
    """Check a number of shots and return it in its shortest form.

    Raises:
        InvalidArgumentError: neither ``full`` nor a whole number that is large enough.
    """
    if shots == FULL:
        return shots
    if not shots.isdecimal() or int(shots) < _LEAST:
        limit = f"{FULL}, {PER_CLASS} (of each class) or a larger number of rows"
        raise InvalidArgumentError("shots", value=shots, limit=limit)
    return str(int(shots))


def draw_splits(
    folder: Path, task: PaperTask, *, shots: str, seed: int, most_rows: int | None = None
) -> Splits:
    """Read a task's rows and draw those of a run.

    Args:
        folder: has ``<task>/{train,validation}.jsonl``, and ``test.jsonl`` if it is known.
        task: the task.
        shots: see the module.
        seed: of the draw of few rows.
        most_rows: cap of the training split if ``shots`` is ``full``, drawn by the seed 0.

    Raises:
        DataError: a file is missing.
        InvalidArgumentError: more rows than there are, or per class without classes.
    """
    if task.held_out is not None:
        return _divide(_read(folder, task, task.held_out), seed=seed)
    train = _read(folder, task, "train")
    validation = _read(folder, task, "validation")
    if shots == FULL:
        if most_rows is not None and most_rows < len(train):
            train = _in_order(train, Random(0).sample(range(len(train)), most_rows))  # noqa: S311 - no secret
        has_test = (folder / task.name / "test.jsonl").is_file()
        return Splits(train, validation, _read(folder, task, "test") if has_test else None)
    draw = Random(seed)  # noqa: S311 - no secret
    if int(shots) == PER_CLASS:
        groups = _by_class(train, task)
        few = [draw.sample(group, 2 * PER_CLASS) for group in groups]
        first = [place for group in few for place in group[:PER_CLASS]]
        second = [place for group in few for place in group[PER_CLASS:]]
    else:
        count = int(shots)
        if 2 * count > len(train):
            limit = f"at most {len(train) // 2} of {task.name}: as many again are for validation"
            raise InvalidArgumentError("shots", value=shots, limit=limit)
        drawn = draw.sample(range(len(train)), 2 * count)
        first, second = drawn[:count], drawn[count:]
    return Splits(_in_order(train, first), _in_order(train, second), validation)


def _divide(rows: Rows, *, seed: int) -> Splits:
    """Draw validation rows from all that there are."""
    order = Random(seed).sample(range(len(rows)), len(rows))  # noqa: S311 - no secret
    held = round(_HELD_OUT_OF_ONE_FILE * len(rows))
    return Splits(_in_order(rows, order[held:]), _in_order(rows, order[:held]))


def trial_splits(splits: Splits, task: PaperTask, *, seed: int) -> Splits:
    """Divide the training rows into four fifths to train on and one to choose a rate by.

    Each class is divided alike; the run's validation and test rows are not used. Of many rows, as
    many as ``_MOST_OF_TRIALS`` are drawn: five trials of a method would take longer than its runs.
    """
    train, draw = splits.train, Random(seed)  # noqa: S311 - no secret
    drawn = draw.sample(range(len(train)), min(len(train), _MOST_OF_TRIALS))
    groups: dict[Any, list[int]] = defaultdict(list)
    for place in drawn:
        groups[train[place]["label"] if task.has_classes else None].append(place)
    held = [place for group in groups.values() for place in group[_HELD_OUT - 1 :: _HELD_OUT]]
    rest = set(drawn) - set(held)
    return Splits(_in_order(train, rest), _in_order(train, held))


def _read(folder: Path, task: PaperTask, split: str) -> Rows:
    path = folder / task.name / f"{split}.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:  # a text may have U+2028, no end of a line
            return [json.loads(line) for line in lines]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", split=split) from error


def _by_class(train: Rows, task: PaperTask) -> list[list[int]]:
    """Return the places of each class's rows, in the order of the labels."""
    if not task.has_classes:
        limit = f"not of {task.name}, which has no classes: {FULL} or another number of rows"
        raise InvalidArgumentError("shots", value=PER_CLASS, limit=limit)
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, row in enumerate(train):
        groups[row["label"]].append(place)
    for label, places in groups.items():
        if len(places) < 2 * PER_CLASS:
            limit = f"{task.name} has {len(places)} rows of the class {label!r}, which is too few"
            raise InvalidArgumentError("shots", value=PER_CLASS, limit=limit)
    return [groups[label] for label in sorted(groups)]


def _in_order(rows: Rows, places: Iterable[int]) -> Rows:
    return [rows[place] for place in sorted(places)]
