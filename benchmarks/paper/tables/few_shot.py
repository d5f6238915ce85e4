r"""16-shot (section 4.1): 16 rows of each class in one batch, and 16 to choose the epoch by.

The tasks of the other tables that have classes, five seeds; the original validation split is the
test set:

    … --tasks cola sst2 mrpc rte --shots 16 --seeds 0 1 2 3 4 \
        --methods hifi-default probe --rates auto
    … --tasks cola sst2 mrpc rte --shots 16 --seeds 0 1 2 3 4 \
        --methods full lora-qv --rates search
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.splits import PER_CLASS
from benchmarks.paper.tables import comparison
from benchmarks.paper.tables.against import OURS, average_rows, is_at_its_best
from benchmarks.paper.tables.table import Lines, Record, Table
from benchmarks.rows import markdown_rows
from hifi.errors import DataError

FEW_SHOT_TASKS = ("cola", "sst2", "mrpc", "rte")
SHOTS = str(PER_CLASS)


def collect(lines: Lines) -> Table:
    """Return the table of the 16-shot runs.

    Raises:
        DataError: there are none.
    """
    found = [
        line
        for line in lines
        if is_at_its_best(line) and line["shots"] == SHOTS and line["task"] in FEW_SHOT_TASKS
    ]
    if not found:
        raise DataError(f"no {SHOTS}-shot runs at their best are wanted")
    return Table(found)


def records(lines: Lines) -> Iterator[Record]:
    """Iterate over the numbers of each method and task."""
    return comparison.records(collect(lines))


def markdown(lines: Lines) -> Iterator[str]:
    """Format the methods and tasks, and the comparison of ours with every rival."""
    table = collect(lines)
    yield from comparison.markdown(table)
    rivals = {name.partition("/")[0]: 0.0 for name in table.names if name != OURS}
    yield ""
    yield from markdown_rows(average_rows(table, SHOTS, least=rivals))
