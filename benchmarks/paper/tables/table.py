"""Runs by size, method and task, with means over seeds and paired differences."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.paper.cells import GIVEN, Cell
from benchmarks.paper.methods import METHODS
from benchmarks.paper.splits import FULL
from benchmarks.paper.tasks import TASKS
from hifi.errors import DataError, InvalidArgumentError

Line = Mapping[str, Any]
Lines = Sequence[Line]
Record = dict[str, Any]  # of a CSV file
RowKey = tuple[str, str]  # shots and the name of a method
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """The seeds of one method on one task.

    Attributes:
        values: the metric ×100 by seed, of the runs that did not diverge.
        diverged: how many runs did.
    """

    values: Mapping[int, float]
    diverged: int = 0

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None without a value."""
        return statistics.mean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """The standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval.

    Attributes:
        mean: of the differences.
        half: half the width of the interval; None for fewer than two pairs.
        pairs: how many.
    """

    mean: float
    half: float | None
    pairs: int

    @property
    def ends(self) -> tuple[float, float] | tuple[None, None]:
        """The ends of the interval; None for fewer than two pairs."""
        return (None, None) if self.half is None else (self.mean - self.half, self.mean + self.half)

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference:
        """Compute mean and interval: t · s / √n with the 97.5 % point of Student's t, n−1."""
        count, half = len(differences), None
        if count > 1:
            quantile = float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))
            half = quantile * statistics.stdev(differences) / count**0.5
        return cls(statistics.mean(differences), half, count)


class Table:
    """Runs by (shots, method) and task.

    Args:
        lines: of a result file; trials are left out.

    Raises:
        DataError: two runs of one seed differ only in what a table does not show, such as epochs.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        runs = [line for line in lines if line["kind"] == "run"]
        self.lines = runs
        self._names = _short_names(runs)
        groups: dict[RowKey, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
        for line in runs:
            row = self.row_of(line)
            seeds = groups[row][line["task"]]
            if line["seed"] in seeds:
                reason = f"two runs of {row[1]} on {line['task']} with seed {line['seed']} differ"
                raise DataError(f"{reason} in {_differing(line, seeds[line['seed']])}: filter them")
            seeds[line["seed"]] = line
        self._groups = {
            row: {task: _summarise(seeds.values()) for task, seeds in groups[row].items()}
            for row in sorted(groups, key=lambda row: _order(*row))
        }
        self.tasks = [name for name in TASKS if any(name in each for each in self._groups.values())]

    @property
    def names(self) -> list[str]:
        """The names of the methods, each once, in the order of the rows."""
        return list(dict.fromkeys(name for _, name in self.rows))

    @property
    def rows(self) -> list[RowKey]:
        """The rows (shots, method), by size and in the order of the methods."""
        return list(self._groups)

    def row_of(self, line: Line) -> RowKey:
        """Return the row of one of the table's lines."""
        return line["shots"], self._names[_full_name(line)]

    def summary(self, row: RowKey, task: str) -> Summary:
        """Return the seeds of a row on a task; empty if it has none."""
        return self._groups.get(row, {}).get(task, Summary({}))

    def average(self, row: RowKey) -> float | None:
        """Return the mean of the tasks' means; None unless every task is there."""
        means = [self.summary(row, task).mean for task in self.tasks]
        present = [mean for mean in means if mean is not None]
        return statistics.mean(present) if present and len(present) == len(means) else None

    def differences(self, first: str, second: str) -> Iterator[tuple[str, str, Difference]]:
        """Iterate over (shots, task, first − second), and over all tasks of each number of shots.

        Raises:
            InvalidArgumentError: a method is not in the file, or they have no seed in common.
        """
        for name in (first, second):
            if name not in self.names:
                limit = f"one of {', '.join(sorted(self.names))}"
                raise InvalidArgumentError("pair", value=name, limit=limit)
        sizes = [shots for shots, name in self.rows if name == first]
        found = False
        for shots in sizes:
            every: list[float] = []
            for task in self.tasks:
                pairs = self.difference(shots, task, first, second)
                every += pairs
                if pairs:
                    yield shots, task, Difference.of(pairs)
            if every:
                found = True
                yield shots, "all", Difference.of(every)
        if not found:
            limit = f"two methods with a task and a seed in common, which {first} has not"
            raise InvalidArgumentError("pair", value=second, limit=limit)

    def difference(self, shots: str, task: str, first: str, second: str) -> list[float]:
        """Return first − second on one task, for every seed that both have."""
        mine = self.summary((shots, first), task).values
        theirs = self.summary((shots, second), task).values
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    def places(self, value: Callable[[RowKey], float | None]) -> dict[RowKey, int]:
        """Return 1 for the rows with the best value of their number of shots, 2 for the second."""
        found: dict[RowKey, int] = {}
        for shots in {shots for shots, _ in self.rows}:
            values = {row: value(row) for row in self.rows if row[0] == shots}
            ranks = sorted({v for v in values.values() if v is not None}, reverse=True)
            found |= {
                row: ranks.index(v) + 1
                for row, v in values.items()
                if v is not None and v in ranks[:2]
            }
        return found


def _full_name(line: Line) -> tuple[str, str, str]:
    rates = f"{line['rate']:g}" if line["rates"] == GIVEN else line["rates"]
    return line["method"], line["head_start"], rates


def _short_names(lines: Lines) -> dict[tuple[str, str, str], str]:
    """Return a name for each (method, head start, rates), as short as one method's rows allow."""
    known = {_full_name(line) for line in lines}
    names = {}
    for each in known:
        same = [other for other in known if other[0] == each[0]]
        parts = [each[0]]
        parts += [each[1]] if len({start for _, start, _ in same}) > 1 else []
        parts += [each[2]] if len({rates for _, _, rates in same}) > 1 else []
        names[each] = "/".join(parts)
    return names


def _order(shots: str, name: str) -> tuple[float, int, str]:
    size = float("inf") if shots == FULL else float(shots)
    return size, list(METHODS).index(name.partition("/")[0]), name


def _summarise(lines: Iterable[Line]) -> Summary:
    values = {line["seed"]: line["value"] for line in lines}
    known = {seed: 100 * value for seed, value in values.items() if value is not None}
    return Summary(known, diverged=len(values) - len(known))


def _differing(line: Line, other: Line) -> str:
    mine, theirs = Cell.of(line).describe(), Cell.of(other).describe()
    return ", ".join(name for name in mine if mine[name] != theirs[name])
