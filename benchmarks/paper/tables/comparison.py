"""Methods × tasks for each number of shots, and the paired differences of two methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.paper.cells import SEARCH
from benchmarks.paper.methods import METHODS
from benchmarks.paper.tasks import TASKS

if TYPE_CHECKING:
    from benchmarks.paper.tables.table import Difference, Lines, Record, Summary, Table

NOTHING = "–"


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
            cell(table.summary(row, task), place=places[task].get(row, 0)) for task in table.tasks
        ]
        average = table.average(row)
        mean = NOTHING if average is None else mark(f"{average:.1f}", place=best.get(row, 0))
        yield f"| {row[0]} | {row[1]} | {' | '.join(cells)} | {mean} |"
    for note in _edges(table.lines):
        yield f"\n{note}"


def records(table: Table) -> Iterator[Record]:
    """Iterate over the numbers of a table: each task of a row, and the average."""
    for shots, name in table.rows:
        for task in table.tasks:
            each = table.summary((shots, name), task)
            if each.values or each.diverged:
                yield {
                    "shots": shots,
                    "method": name,
                    "task": task,
                    "metric": TASKS[task].metric,
                    "mean": each.mean,
                    "sd": each.sd,
                    "n": len(each.values),
                    "diverged": each.diverged,
                }
        if (average := table.average((shots, name))) is not None:
            yield {"shots": shots, "method": name, "task": "average", "mean": average}


def markdown_differences(table: Table, first: str, second: str) -> Iterator[str]:
    """Format the paired differences of two methods."""
    yield f"| shots | task | {first} − {second} | 95 % interval (t) | pairs |"
    yield "|---|---|---|---|---|"
    for shots, task, found in table.differences(first, second):
        yield f"| {shots} | {task} | {found.mean:+.1f} | {interval(found)} | {found.pairs} |"


def difference_records(table: Table, first: str, second: str) -> Iterator[Record]:
    """Iterate over the paired differences of two methods."""
    for shots, task, found in table.differences(first, second):
        low, high = found.ends
        yield {
            "shots": shots,
            "task": task,
            "first": first,
            "second": second,
            "difference": found.mean,
            "low": low,
            "high": high,
            "pairs": found.pairs,
        }


def interval(found: Difference) -> str:
    """Format the interval of a difference."""
    low, high = found.ends
    return NOTHING if low is None else f"{low:.1f} to {high:.1f}"


def cell(summary: Summary, *, place: int = 0) -> str:
    """Format mean ± standard deviation (number of runs); the best and the second best marked."""
    diverged = f", {summary.diverged} diverged" if summary.diverged else ""
    if summary.mean is None:
        return f"{NOTHING}{diverged}"
    spread = "" if summary.sd is None else f" ± {summary.sd:.1f}"
    return f"{mark(f'{summary.mean:.1f}', place=place)}{spread} ({len(summary.values)}{diverged})"


def mark(text: str, *, place: int) -> str:
    """Format the best, 1, in bold, and underline the second best, 2."""
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
