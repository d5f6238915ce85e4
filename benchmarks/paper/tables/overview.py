"""The learning curves in one small table: averages over tasks, and what each method trains."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from benchmarks.paper.splits import FULL
from benchmarks.paper.tables.against import OURS, PROBE
from benchmarks.paper.tables.comparison import NOTHING, mark
from benchmarks.paper.tables.curves import collect

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
    table = collect(lines)
    for shots, name in table.rows:
        if (average := table.average((shots, name))) is not None:
            weights, stored = _sizes(table, name)
            yield {
                "rows": shots,
                "method": name,
                "average": average,
                "tasks": len(table.tasks),
                "trained_weights": weights,
                "stored_bytes": stored,
            }


def markdown(lines: Lines) -> Iterator[str]:
    """Format a row for each method and a column for each size."""
    table = collect(lines)
    sizes = list(dict.fromkeys(shots for shots, _ in table.rows))
    titles = [f"{int(shots):,} rows" if shots != FULL else "all rows" for shots in sizes]
    yield f"| method | trained weights | stored | {' | '.join(titles)} |"
    yield "|---" * (len(sizes) + 3) + "|"
    places = table.places(table.average)
    for name in table.names:
        weights, stored = _sizes(table, name)
        costs = f"{weights:,.0f} | {stored / 1000:,.0f} kB"
        numbers = [_cell(table, (shots, name), places) for shots in sizes]
        yield f"| {_words(name)} | {costs} | {' | '.join(numbers)} |"


def _words(name: str) -> str:
    """Describe a method; ``name`` also has the head start where it has run from several."""
    method, _, start = name.partition("/")
    return _WORDS[method] + (f", from a {start} start" if start else "")


def _cell(table: Table, row: RowKey, places: Mapping[RowKey, int]) -> str:
    average = table.average(row)
    return NOTHING if average is None else mark(f"{average:.1f}", place=places.get(row, 0))


def _sizes(table: Table, name: str) -> tuple[float, float]:
    """Return the trained weights and the bytes in float32 of a method, averaged over its runs."""
    lines = [line for line in table.lines if table.row_of(line)[1] == name]
    weights = statistics.mean(line["trained_weights"] for line in lines)
    return weights, statistics.mean(line["stored_bytes"]["float32"] for line in lines)
