"""Tab. 3: what tuned heads are worth by how they were chosen, against random ones from one start.

Random heads are drawn three times for each task and seed. A difference is paired with the mean of
these draws on the same task and seed; its interval takes all such cells for independent. The
overlap of two sets of heads is Jaccard's, the common ones over all in either; it is with PageRank's
heads of the same task, seed and allotment.

    … --methods table-3 --tasks cola sst2 mrpc stsb rte --seeds 0 1 2 --rates usual
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.paper.methods.ablations import ALLOTMENTS, PAGERANK, RANDOM, RANKINGS, TABLE_3
from benchmarks.paper.tables.comparison import NOTHING, cell, interval, mark
from benchmarks.paper.tables.table import Difference, Line, Lines, Record, Summary, Table
from benchmarks.paper.tasks import TASKS
from hifi.errors import DataError

Pair = tuple[str, int]  # task and seed
_RANDOM = RANDOM[0]


@dataclass(frozen=True, eq=False)
class Chosen:
    """All runs with heads of one ranking in one allotment; the draws of random heads together.

    Attributes:
        lines: by task and seed.
    """

    allotment: str
    ranking: str
    lines: Mapping[Pair, list[Line]] = field(default_factory=lambda: defaultdict(list))

    def summary(self, task: str) -> Summary:
        """Return the runs of a task; the values of random heads are of seeds and draws."""
        found = [
            line["value"] for (name, _), each in self.lines.items() if name == task for line in each
        ]
        values = [100 * value for value in found if value is not None]
        return Summary(dict(enumerate(values)), diverged=len(found) - len(values))

    def mean(self, pair: Pair) -> float | None:
        """Return the mean over the draws of one task and seed; None if none has a value."""
        values = [100 * line["value"] for line in self.lines[pair] if line["value"] is not None]
        return statistics.mean(values) if values else None

    def average(self, tasks: Iterable[str]) -> float | None:
        """Return the mean of the tasks' means; None unless all are there."""
        means = [self.summary(task).mean for task in tasks]
        known = [mean for mean in means if mean is not None]
        return statistics.mean(known) if len(known) == len(means) else None

    def difference(self, other: Chosen) -> Difference | None:
        """Return this − other over all tasks and seeds that both have; None without one."""
        both = [(self.mean(pair), other.mean(pair)) for pair in self.lines if pair in other.lines]
        pairs = [mine - theirs for mine, theirs in both if mine is not None and theirs is not None]
        return Difference.of(pairs) if pairs else None

    def overlap(self, other: Chosen) -> float | None:
        """Return the mean overlap of the heads of equal tasks and seeds; None without any."""
        shares = [
            jaccard(mine, theirs)
            for pair, lines in self.lines.items()
            for mine in map(heads_of, lines)
            for theirs in map(heads_of, other.lines.get(pair, ()))
            if mine and theirs
        ]
        return statistics.mean(shares) if shares else None


def heads_of(line: Line) -> frozenset[tuple[int, int]]:
    """Return the tuned heads of a run; none of a run that diverged."""
    return frozenset((layer, head) for layer, head in line.get("heads") or ())


def jaccard(first: frozenset[tuple[int, int]], second: frozenset[tuple[int, int]]) -> float:
    """Return how many members two sets have in common, as a share of all; not of two empty ones."""
    return len(first & second) / len(first | second)


def collect(lines: Lines) -> list[Chosen]:
    """Collect the runs of Tab. 3, in its order.

    Raises:
        DataError: the runs are of several sizes, head starts or ways to choose the rate, or there
            are none.
    """
    known = [line for line in lines if line["kind"] == "run" and line["method"] in TABLE_3]
    if not known:
        raise DataError(f"no runs of Tab. 3 are wanted: its methods are {', '.join(TABLE_3)}")
    table = Table(known)
    kinds = {(line["shots"], line["head_start"], line["rates"]) for line in table.lines}
    if len(kinds) > 1:
        found = " and ".join(
            sorted(f"{shots} from {start}, {rates}" for shots, start, rates in kinds)
        )
        raise DataError(f"Tab. 3 is of one size, head start and rates, not of {found}: filter them")
    rows: dict[tuple[str, str], Chosen] = {}
    for line in table.lines:
        ranking, allotment = TABLE_3[line["method"]]
        key = (allotment, _RANDOM if ranking in RANDOM else ranking)
        rows.setdefault(key, Chosen(*key)).lines[line["task"], line["seed"]].append(line)
    order = list(RANKINGS)
    return sorted(
        rows.values(), key=lambda row: (ALLOTMENTS.index(row.allotment), order.index(row.ranking))
    )


def records(lines: Lines) -> Iterator[Record]:
    """Iterate over the numbers of each ranking in each allotment."""
    rows = collect(lines)
    tasks = _tasks(rows)
    for row in rows:
        found = _against(row, _RANDOM, rows)
        difference = None if found is None else row.difference(found)
        paper = _against(row, PAGERANK, rows)
        yield {
            "allotment": row.allotment,
            "ranking": row.ranking,
            **{name: row.summary(name).mean for name in tasks},
            **{f"{name}_sd": row.summary(name).sd for name in tasks},
            "average": row.average(tasks),
            "above_random": None if difference is None else difference.mean,
            "low": None if difference is None else difference.ends[0],
            "high": None if difference is None else difference.ends[1],
            "pairs": 0 if difference is None else difference.pairs,
            "overlap": None if paper is None else row.overlap(paper),
        }


def markdown(lines: Lines) -> Iterator[str]:
    """Format Tab. 3: a row for each ranking in each allotment."""
    rows = collect(lines)
    tasks = _tasks(rows)
    titles = [f"{task} ({TASKS[task].metric})" for task in tasks]
    yield (
        f"| allotment | heads by | {' | '.join(titles)} | average | − random | 95 % interval (t) "
        "| pairs | overlap with PageRank's |"
    )
    yield "|---" * (len(tasks) + 7) + "|"
    for row in rows:
        same = [other for other in rows if other.allotment == row.allotment]
        cells = [
            cell(
                row.summary(task),
                place=_place(row.summary(task).mean, [other.summary(task).mean for other in same]),
            )
            for task in tasks
        ]
        average = row.average(tasks)
        place = _place(average, [other.average(tasks) for other in same])
        cells.append(NOTHING if average is None else mark(f"{average:.1f}", place=place))
        random, paper = _against(row, _RANDOM, rows), _against(row, PAGERANK, rows)
        difference = None if random is None else row.difference(random)
        if difference is None:
            cells += [NOTHING, NOTHING, NOTHING]
        else:
            cells += [f"{difference.mean:+.1f}", interval(difference), str(difference.pairs)]
        overlap = None if paper is None else row.overlap(paper)
        cells.append(NOTHING if overlap is None else f"{overlap:.2f}")
        yield f"| {row.allotment} | {RANKINGS[row.ranking].words} | {' | '.join(cells)} |"


def _tasks(rows: Iterable[Chosen]) -> list[str]:
    known = {task for row in rows for task, _ in row.lines}
    return [name for name in TASKS if name in known]


def _against(row: Chosen, ranking: str, rows: Iterable[Chosen]) -> Chosen | None:
    """Return the row of another ranking with the same allotment; None if it is this one."""
    if row.ranking == ranking:
        return None
    same = (each for each in rows if (each.allotment, each.ranking) == (row.allotment, ranking))
    return next(same, None)


def _place(value: float | None, values: Iterable[float | None]) -> int:
    """Return 1 for the best of some values, 2 for the second best, else 0."""
    ranks = sorted({each for each in values if each is not None}, reverse=True)[:2]
    return ranks.index(value) + 1 if value in ranks else 0
