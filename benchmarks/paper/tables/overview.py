"""The learning curves in one small table: averages over all tasks, and what each method trains.

Methods and sizes without a run of every task are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from benchmarks.paper.splits import FULL
from benchmarks.paper.tables.against import OURS, PROBE
from benchmarks.paper.tables.comparison import NOTHING, mark
from benchmarks.paper.tables.curves import CURVE_TASKS, collect
from hifi.errors import DataError

if TYPE_CHECKING:
    from benchmarks.paper.tables.table import Lines, Record, RowKey, Table

_WORDS: Mapping[str, str] = {
    PROBE: "linear probe",
    "full": "full fine-tuning",
    "lora-qv": "LoRA, rank 8, query and value",
    OURS: "HiFi, three heads of each layer",
}


def records(lines: Lines) -> Iterator[Record]:
    """Iterate over the averages of each method and size, with trained weights and stored bytes."""
    table, averages = _averages(lines)
    for (shots, name), average in averages.items():
        weights, stored = _sizes(table, name)
        yield {
            "rows": shots,
            "method": name,
            "average": average,
            "trained_weights": weights,
            "stored_bytes": stored,
        }


def markdown(lines: Lines) -> Iterator[str]:
    """Format a row for each method and a column for each size."""
    table, averages = _averages(lines)
    sizes = list(dict.fromkeys(shots for shots, _ in averages))
    titles = [f"{int(shots):,} rows" if shots != FULL else "all rows" for shots in sizes]
    yield f"| method | trained weights | stored | {' | '.join(titles)} |"
    yield "|---" * (len(sizes) + 3) + "|"
    places = table.places(averages.get)
    for name in table.names:
        if all(name != other for _, other in averages):
            continue
        weights, stored = _sizes(table, name)
        costs = f"{weights:,.0f} | {stored / 1000:,.0f} kB"
        numbers = [
            mark(f"{averages[row]:.1f}", place=places.get(row, 0)) if row in averages else NOTHING
            for row in [(shots, name) for shots in sizes]
        ]
        yield f"| {_words(name)} | {costs} | {' | '.join(numbers)} |"


def _averages(lines: Lines) -> tuple[Table, dict[RowKey, float]]:
    """Return the table of the curves, and the averages of the rows that have every task.

    Raises:
        DataError: there are none.
    """
    table = collect(lines)
    averages = {
        row: average
        for row in table.rows
        if all(table.summary(row, task).values for task in CURVE_TASKS)
        and (average := table.average(row)) is not None
    }
    if not averages:
        raise DataError(f"no method has runs of all tasks: {', '.join(CURVE_TASKS)}")
    return table, averages


def _words(name: str) -> str:
    """Describe a method; ``name`` also has the head start where it has run from several."""
    method, _, start = name.partition("/")
    return _WORDS[method] + (f", from a {start} start" if start else "")


def _sizes(table: Table, name: str) -> tuple[float, float]:
    """Return the trained weights and the bytes in float32 of a method, averaged over its runs.

    Tasks differ by a task head's output: one for a regression, two for two classes.
    """
    lines = [line for line in table.lines if table.row_of(line)[1] == name]
    weights = statistics.mean(line["trained_weights"] for line in lines)
    return weights, statistics.mean(line["stored_bytes"]["float32"] for line in lines)
