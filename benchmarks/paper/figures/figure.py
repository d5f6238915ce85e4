"""What a figure is, and what it is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.paper.methods.base import Run
from benchmarks.paper.methods.head_starts import RANDOM
from benchmarks.paper.results import read_lines
from benchmarks.paper.splits import FULL, Splits, draw_splits
from benchmarks.paper.tasks import TASKS
from hifi.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.tables.table import Line
    from hifi.backbones.models import ModelSource

Numbers = dict[str, Any]  # plain JSON
Input = Literal["data", "results"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the figures of one command are computed from.

    Attributes:
        source: the backbone.
        data: the folder of the tasks' folders.
        task: name of the task that is scored and trained on.
        seeds: of runs; a figure of one run has the first.
        shots: as in ``benchmarks.paper.splits``; the rows of ``contours``.
        steps: of each training; None for one epoch.
        results: a file of results; None without.
        directions: of ``contours``.
        grid: points of ``contours`` along each direction.
        rows: of the validation split, whose loss ``contours`` has.
    """

    source: ModelSource
    data: Path
    task: str
    seeds: tuple[int, ...] = (0,)
    shots: str = FULL
    steps: int | None = None
    results: Path | None = None
    directions: str = "ends"
    grid: int = 9
    rows: int = 256

    def splits(self, *, shots: str = FULL) -> Splits:
        """Draw the rows of the task, few of them by the first seed."""
        return draw_splits(self.data, TASKS[self.task], shots=shots, seed=self.seeds[0])

    def run(self, splits: Splits, **hyperparameters: Any) -> Run:
        """Return a run on rows of the task, whose task head starts at random."""
        return Run(
            source=self.source,
            task=TASKS[self.task],
            splits=splits,
            head_start=RANDOM,
            hyperparameters=hyperparameters,
        )

    def lines(self) -> list[Line]:
        """Read the runs of the backbone in the file of results; none without a file.

        Raises:
            DataError: the file is missing or damaged.
        """
        if self.results is None:
            return []
        if not self.results.is_file():
            raise DataError(f"{self.results} does not exist: --results is a file of results")
        lines = read_lines(self.results)
        return [
            line for line in lines if line["kind"] == "run" and line["backbone"] == self.source.name
        ]


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """One figure, in three steps of which only the first takes time.

    Attributes:
        words: what it shows, in one line.
        compute: computes its numbers.
        draw: draws them.
        notes: describes them in lines of text.
        inputs: what must be there.
    """

    words: str
    compute: Callable[[Request], Numbers]
    draw: Callable[[Numbers], Figure]
    notes: Callable[[Numbers], Iterator[str]]
    inputs: frozenset[Input] = field(default_factory=frozenset)


def plain(values: Any) -> Any:
    """Return an array as nested lists of numbers, with None for those that are not finite."""
    known = np.asarray(values, dtype=float)
    found = known.astype(object)
    found[~np.isfinite(known)] = None
    return found.tolist()


def array(values: Any) -> np.ndarray:
    """Return what ``plain`` has made of an array, with NaN for None."""
    return np.array(values, dtype=float)
