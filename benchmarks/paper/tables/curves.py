"""Learning curves: defaults alone at four sizes, against a probe, and rivals at their best rates.

All five tasks at 64, 256 and 1,024 rows and on all of them (``--most-rows all``), three seeds:

    … --methods hifi-default probe --rates auto --shots 64 256 1024 full --most-rows all
    … --methods lora-qv full --rates search --shots 64 256 1024 full --most-rows all
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.splits import FULL
from benchmarks.paper.tables.against import OURS, PROBE, average_rows, is_at_its_best
from benchmarks.paper.tables.comparison import NOTHING, cell, interval
from benchmarks.paper.tables.table import Difference, Lines, Record, Table
from benchmarks.paper.tasks import TASKS
from benchmarks.rows import Row, markdown_rows
from hifi.errors import DataError

SIZES = ("64", "256", "1024", FULL)
CURVE_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
# Targets in points. With all rows, full fine-tuning may be a little better.
_LEAST = {"lora-qv": 0.0, "full": 0.0}
_LEAST_OF_ALL = {"lora-qv": 0.0, "full": -0.5}
_BELOW_PROBE = 0.5
_LEAST_ABOVE = 16  # of the 20 cells


def collect(lines: Lines) -> Table:
    """Return the table of the runs of learning curves.

    Raises:
        DataError: there are none of ours.
    """
    methods = {OURS, PROBE, *_LEAST}
    found = [
        line
        for line in lines
        if is_at_its_best(line)
        and line["method"] in methods
        and line["task"] in CURVE_TASKS
        and line["shots"] in SIZES
        and line["most_rows"] is None
    ]
    if not any(line["method"] == OURS for line in found):
        raise DataError(f"no runs of learning curves are wanted: {OURS} with rates auto, all rows")
    return Table(found)


def records(lines: Lines) -> Iterator[Record]:
    """Iterate over the numbers of each task, size and method, with the difference to the probe."""
    table = collect(lines)
    for task in table.tasks:
        for shots, name in table.rows:
            summary = table.summary((shots, name), task)
            pairs = table.difference(shots, task, name, PROBE)
            found = Difference.of(pairs) if pairs else None
            if summary.mean is not None:
                yield {
                    "task": task,
                    "metric": TASKS[task].metric,
                    "rows": shots,
                    "method": name,
                    "mean": summary.mean,
                    "sd": summary.sd,
                    "n": len(summary.values),
                    "above_probe": None if found is None else found.mean,
                    "low": None if found is None else found.ends[0],
                    "high": None if found is None else found.ends[1],
                }


def markdown(lines: Lines) -> Iterator[str]:
    """Format the curves, a row for each task and size, and the comparison with the targets."""
    table = collect(lines)
    places = {
        task: table.places(lambda row, task=task: table.summary(row, task).mean)  # type: ignore[misc]
        for task in table.tasks
    }
    yield (f"| task | rows | {' | '.join(table.names)} | {OURS} − {PROBE} | 95 % interval (t) |")
    yield "|---" * (len(table.names) + 4) + "|"
    for task in table.tasks:
        for shots in _sizes(table):
            cells = [
                cell(table.summary((shots, name), task), place=places[task].get((shots, name), 0))
                for name in table.names
            ]
            pairs = table.difference(shots, task, OURS, PROBE)
            found = Difference.of(pairs) if pairs else None
            cells.append(NOTHING if found is None else f"{found.mean:+.1f}")
            cells.append(NOTHING if found is None else interval(found))
            yield f"| {task} ({TASKS[task].metric}) | {shots} | {' | '.join(cells)} |"
    for shots in _sizes(table):
        means = [table.average((shots, name)) for name in table.names]
        texts = [NOTHING if mean is None else f"{mean:.1f}" for mean in means]
        yield f"| average | {shots} | {' | '.join(texts)} | {NOTHING} | {NOTHING} |"
    yield ""
    yield from markdown_rows(verdicts(table))


def verdicts(table: Table) -> Iterator[Row]:
    """Compare the curves with the targets."""
    above = [
        ours - probe
        for shots in _sizes(table)
        for task in table.tasks
        if (ours := table.summary((shots, OURS), task).mean) is not None
        and (probe := table.summary((shots, PROBE), task).mean) is not None
    ]
    cells = len(SIZES) * len(CURVE_TASKS)
    measured = f"of {len(above)} cells with both, of {cells}"
    enough = sum(each >= -_BELOW_PROBE for each in above)
    yield Row(f"at least {PROBE} − {_BELOW_PROBE} point, {measured}", enough, f"≥ {cells}", "cells")
    better = sum(each > 0 for each in above)
    yield Row(f"above {PROBE}, {measured}", better, f"≥ {_LEAST_ABOVE}", "cells")
    for shots in _sizes(table):
        yield from average_rows(table, shots, least=_LEAST_OF_ALL if shots == FULL else _LEAST)


def _sizes(table: Table) -> list[str]:
    return [shots for shots in SIZES if any(row[0] == shots for row in table.rows)]
