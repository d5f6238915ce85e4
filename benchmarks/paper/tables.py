"""Print the tables of a result file: methods × tasks, learning curves, paired differences.

    python -m benchmarks.paper.tables results.jsonl
    python -m benchmarks.paper.tables results.jsonl --shots 64 256 full --methods probe hifi
    python -m benchmarks.paper.tables results.jsonl --pair hifi lora-qv/probe --format csv

Numbers are the metric ×100, the mean over seeds ± their standard deviation (n−1), with the number
of seeds. In Markdown the best mean of a task is bold and the second best underlined, among the rows
of as many shots; an average stands only in rows that have every task. A method is named
``method/head start/rates`` as far as the rows differ.

Differences are paired by task and seed. The 95 % interval is Student's t over the pairs; that of
"all" takes pairs of different tasks for independent.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from scipy import stats

from benchmarks.paper.cells import GIVEN, SEARCH, Cell
from benchmarks.paper.methods import METHODS
from benchmarks.paper.results import read_lines
from benchmarks.paper.splits import FULL
from benchmarks.paper.tasks import TASKS
from hifi.errors import DataError, HifiError, InvalidArgumentError

Lines = Sequence[Mapping[str, Any]]
_CONFIDENCE = 0.95
_NOTHING = "–"


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

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        runs = [line for line in lines if line["kind"] == "run"]
        self.lines = runs
        self._names = _short_names(runs)
        groups: dict[tuple[str, str], dict[str, dict[int, Any]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for line in runs:
            row = (line["shots"], self._names[_full_name(line)])
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
    def rows(self) -> list[tuple[str, str]]:
        """The rows (shots, method), by size and in the order of the methods."""
        return list(self._groups)

    def summary(self, row: tuple[str, str], task: str) -> Summary:
        """Return the seeds of a row on a task."""
        return self._groups[row].get(task, Summary({}))

    def average(self, row: tuple[str, str]) -> float | None:
        """Return the mean of the tasks' means; None unless every task is there."""
        means = [self.summary(row, task).mean for task in self.tasks]
        present = [mean for mean in means if mean is not None]
        return statistics.mean(present) if present and len(present) == len(means) else None

    def differences(self, first: str, second: str) -> Iterator[tuple[str, str, Difference]]:
        """Iterate over (shots, task, first − second), and over all tasks of each number of shots.

        Raises:
            InvalidArgumentError: a method is not in the file, or they have no seed in common.
        """
        known = {name for _, name in self.rows}
        for name in (first, second):
            if name not in known:
                limit = f"one of {', '.join(sorted(known))}"
                raise InvalidArgumentError("pair", value=name, limit=limit)
        sizes = [shots for shots, name in self.rows if name == first]
        found = False
        for shots in sizes:
            every: list[float] = []
            for task in self.tasks:
                mine = self._values((shots, first), task)
                theirs = self._values((shots, second), task)
                pairs = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
                every += pairs
                if pairs:
                    yield shots, task, Difference.of(pairs)
            if every:
                found = True
                yield shots, "all", Difference.of(every)
        if not found:
            limit = f"two methods with a task and a seed in common, which {first} has not"
            raise InvalidArgumentError("pair", value=second, limit=limit)

    def _values(self, row: tuple[str, str], task: str) -> Mapping[int, float]:
        return self.summary(row, task).values if row in self._groups else {}

    def places(
        self, value: Callable[[tuple[str, str]], float | None]
    ) -> dict[tuple[str, str], int]:
        """Return 1 for the rows with the best value of their number of shots, 2 for the second."""
        found: dict[tuple[str, str], int] = {}
        for shots in {shots for shots, _ in self.rows}:
            values = {row: value(row) for row in self.rows if row[0] == shots}
            ranks = sorted({v for v in values.values() if v is not None}, reverse=True)
            found |= {
                row: ranks.index(v) + 1
                for row, v in values.items()
                if v is not None and v in ranks[:2]
            }
        return found


def markdown(table: Table) -> Iterator[str]:
    """Format a table: a row for each number of shots and method."""
    titles = [f"{task} ({TASKS[task].metric})" for task in table.tasks]
    yield f"| shots | method | {' | '.join(titles)} | average |"
    yield "|---" * (len(titles) + 3) + "|"
    places = {
        task: table.places(lambda row, task=task: table.summary(row, task).mean)  # type: ignore[misc]
        for task in table.tasks
    }
    best = table.places(table.average)
    for row in table.rows:
        cells = [
            _cell(table.summary(row, task), place=places[task].get(row, 0)) for task in table.tasks
        ]
        average = table.average(row)
        mean = _NOTHING if average is None else _mark(f"{average:.1f}", place=best.get(row, 0))
        yield f"| {row[0]} | {row[1]} | {' | '.join(cells)} | {mean} |"
    for note in _edges(table.lines):
        yield f"\n{note}"


def markdown_differences(table: Table, first: str, second: str) -> Iterator[str]:
    """Format the paired differences of two methods."""
    yield f"| shots | task | {first} − {second} | 95 % interval (t) | pairs |"
    yield "|---|---|---|---|---|"
    for shots, task, found in table.differences(first, second):
        interval = _NOTHING
        if found.half is not None:
            interval = f"{found.mean - found.half:.1f} to {found.mean + found.half:.1f}"
        yield f"| {shots} | {task} | {found.mean:+.1f} | {interval} | {found.pairs} |"


def write_csv(table: Table, *, file: TextIO) -> None:
    """Write a line for each number of shots, method and task."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["shots", "method", "task", "metric", "mean", "sd", "n", "diverged"])
    for row in table.rows:
        for task in table.tasks:
            each = table.summary(row, task)
            if each.values or each.diverged:
                numbers = [each.mean, each.sd, len(each.values), each.diverged]
                writer.writerow([*row, task, TASKS[task].metric, *numbers])
        if (average := table.average(row)) is not None:
            writer.writerow([*row, "average", "", average, None, None, None])


def write_csv_differences(table: Table, first: str, second: str, *, file: TextIO) -> None:
    """Write a line for each number of shots and task."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["shots", "task", "first", "second", "difference", "low", "high", "pairs"])
    for shots, task, found in table.differences(first, second):
        half = found.half
        ends = [None, None] if half is None else [found.mean - half, found.mean + half]
        writer.writerow([shots, task, first, second, found.mean, *ends, found.pairs])


def _full_name(line: Mapping[str, Any]) -> tuple[str, str, str]:
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


def _summarise(lines: Iterable[Mapping[str, Any]]) -> Summary:
    values = {line["seed"]: line["value"] for line in lines}
    known = {seed: 100 * value for seed, value in values.items() if value is not None}
    return Summary(known, diverged=len(values) - len(known))


def _differing(line: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    mine, theirs = Cell.of(line).describe(), Cell.of(other).describe()
    return ", ".join(name for name in mine if mine[name] != theirs[name])


def _cell(summary: Summary, *, place: int) -> str:
    diverged = f", {summary.diverged} diverged" if summary.diverged else ""
    if summary.mean is None:
        return f"{_NOTHING}{diverged}"
    spread = "" if summary.sd is None else f" ± {summary.sd:.1f}"
    return f"{_mark(f'{summary.mean:.1f}', place=place)}{spread} ({len(summary.values)}{diverged})"


def _mark(text: str, *, place: int) -> str:
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(place, text)


def _edges(lines: Lines) -> Iterator[str]:
    """Yield a note for each method whose searched rate was the lowest or highest that was tried."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        trials = METHODS[line["method"]].trial_rates
        if line["rates"] == SEARCH and line["learning_rate"] in (trials[0], trials[-1]):
            found[line["method"]].add(f"{line['task']} {line['shots']}: {line['learning_rate']:g}")
    for method, places in sorted(found.items()):
        yield f"{method}: best rate at an end of the search ({'; '.join(sorted(places))})."


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--format", choices=("markdown", "csv"), default="markdown")
    parser.add_argument("--pair", nargs=2, metavar=("FIRST", "SECOND"), help="show differences")
    for name in ("shots", "methods", "tasks", "head-starts", "rates", "backbones"):
        parser.add_argument(f"--{name}", nargs="+", help=f"only these {name.replace('-', ' ')}")
    parser.add_argument("--most-rows", help="only full runs with this cap; all for no cap")
    return parser.parse_args(arguments)


def _is_wanted(line: Mapping[str, Any], options: argparse.Namespace) -> bool:
    named = {
        "shots": options.shots,
        "method": options.methods,
        "task": options.tasks,
        "head_start": options.head_starts,
        "rates": options.rates,
        "backbone": options.backbones,
    }
    cap = "all" if line["most_rows"] is None else str(line["most_rows"])
    is_capped = options.most_rows is None or line["shots"] != FULL or cap == options.most_rows
    return is_capped and all(
        wanted is None or line[name] in wanted for name, wanted in named.items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        lines = [line for path in options.files for line in read_lines(path)]
        table = Table(line for line in lines if _is_wanted(line, options))
        if not table.rows:
            raise DataError(f"no runs in {', '.join(map(str, options.files))} are wanted")
        if options.format == "csv":
            if options.pair:
                write_csv_differences(table, *options.pair, file=sys.stdout)
            else:
                write_csv(table, file=sys.stdout)
            return 0
        print("\n".join(markdown(table)))
        if options.pair:
            print()
            print("\n".join(markdown_differences(table, *options.pair)))
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
