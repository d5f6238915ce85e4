"""Quality against stored bytes: heads by budget, LoRA by rank, BitFit and IA³, in every encoding.

The quality of an encoding is that of the model with what was read back from the file. Bytes are
means over tasks and seeds; a row is compared if it has every task.

    … --methods stored --tasks cola sst2 mrpc stsb rte --seeds 0 1 2 --rates search
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.paper.methods import METHODS
from benchmarks.paper.tables.comparison import NOTHING, cell
from benchmarks.paper.tables.table import Line, Lines, Record, RowKey, Summary, Table
from benchmarks.paper.tasks import TASKS
from benchmarks.rows import Row, markdown_rows
from hifi.deltas.metadata import ENCODINGS
from hifi.errors import DataError

EXACT = ENCODINGS[0]
_RIVAL = "lora-qv"  # r = 8, in float32 as PEFT writes it
_WORST_INT8 = -0.2  # points


@dataclass(frozen=True, eq=False)
class Stored:
    """The runs of one method in one encoding.

    Attributes:
        row: shots and name of the method.
        table: the runs with the values of this encoding.
        bytes: of a file, the mean over the runs.
    """

    row: RowKey
    encoding: str
    table: Table
    bytes: float

    @property
    def average(self) -> float | None:
        """The mean over tasks; None unless every task is there."""
        return self.table.average(self.row)

    def summary(self, task: str) -> Summary:
        """Return the seeds of a task."""
        return self.table.summary(self.row, task)

    @property
    def is_ours(self) -> bool:
        """Whether it is a head delta."""
        return METHODS[self.row[1].partition("/")[0]].has_defaults


def collect(lines: Lines) -> list[Stored]:
    """Return every method in every encoding, the smallest first.

    Raises:
        DataError: no run was measured in several encodings.
    """
    measured = [line for line in lines if line["kind"] == "run" and line.get("encoded")]
    if not measured:
        raise DataError("no runs that were measured in several encodings are wanted")
    names = Table(measured)
    found = []
    for encoding in ENCODINGS:
        table = Table([_in_encoding(line, encoding) for line in measured])
        sizes: dict[RowKey, list[int]] = defaultdict(list)
        for line in measured:
            sizes[names.row_of(line)].append(line["stored_bytes"][encoding])
        found += [Stored(row, encoding, table, statistics.mean(sizes[row])) for row in names.rows]
    return sorted(found, key=lambda each: (each.row[0], each.bytes))


def _in_encoding(line: Line, encoding: str) -> Line:
    """Return a line with the value of an encoding; float32 is what was trained."""
    if encoding == EXACT:
        return line
    metrics = line["encoded"][encoding][line["measured_on"]]
    return {**line, "value": metrics[line["metric"]]}


def records(lines: Lines) -> Iterator[Record]:
    """Iterate over the numbers of each method and encoding."""
    for each in collect(lines):
        yield {
            "shots": each.row[0],
            "method": each.row[1],
            "encoding": each.encoding,
            "bytes": each.bytes,
            **{task: each.summary(task).mean for task in each.table.tasks},
            "average": each.average,
        }


def markdown(lines: Lines) -> Iterator[str]:
    """Format the methods and encodings by size, and the comparison with the targets."""
    rows = collect(lines)
    tasks = rows[0].table.tasks
    titles = [f"{task} ({TASKS[task].metric})" for task in tasks]
    yield f"| shots | method | encoding | kB | {' | '.join(titles)} | average |"
    yield "|---" * (len(tasks) + 5) + "|"
    for each in rows:
        cells = [cell(each.summary(task)) for task in tasks]
        cells.append(NOTHING if each.average is None else f"{each.average:.1f}")
        shots, name = each.row
        size = f"{each.bytes / 1000:,.1f}"
        yield f"| {shots} | {name} | {each.encoding} | {size} | {' | '.join(cells)} |"
    yield ""
    yield from markdown_rows(verdicts(rows))


def verdicts(rows: list[Stored]) -> Iterator[Row]:
    """Compare the smallest of ours that is as good as LoRA with LoRA, and int8 with float32."""
    for rival in rows:
        if rival.row[1].partition("/")[0] == _RIVAL and rival.encoding == EXACT:
            yield from _smallest_as_good(rows, rival)
    exact = {each.row: each for each in rows if each.encoding == EXACT}
    for each in rows:
        if each.encoding == "int8" and each.is_ours:
            differences = _differences(each, exact[each.row])
            what = f"{each.row[0]}: {each.row[1]}, int8 − {EXACT}, all cells"
            if differences:  # none if every seed diverged in one of the two
                yield Row(what, statistics.mean(differences), f"≥ {_WORST_INT8}", "points")


def _smallest_as_good(rows: list[Stored], rival: Stored) -> Iterator[Row]:
    shots, name = rival.row
    enough = [
        each
        for each in rows
        if each.is_ours
        and each.row[0] == shots
        and each.average is not None
        and rival.average is not None
        and each.average >= rival.average
    ]
    if not enough:
        yield Row(f"{shots}: no head delta as good as {name}", float("inf"), "≤ 1")
        return
    best = min(enough, key=lambda each: each.bytes)
    what = f"{shots}: bytes of {best.row[1]} in {best.encoding}, as good as {name}, over {name}'s"
    yield Row(what, best.bytes / rival.bytes, "≤ 1")


def _differences(first: Stored, second: Stored) -> list[float]:
    pairs = []
    for task in first.table.tasks:
        mine, theirs = first.summary(task).values, second.summary(task).values
        pairs += [mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()]
    return pairs
