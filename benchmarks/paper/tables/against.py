"""What the library does unasked, ``hifi-default``, against what it must not be below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from benchmarks.paper.cells import AUTO, NONE, SEARCH
from benchmarks.rows import Row

if TYPE_CHECKING:
    from benchmarks.paper.tables.table import Line, Table

OURS, PROBE = "hifi-default", "probe"


def is_at_its_best(line: Line) -> bool:
    """Whether a run is of ours with nothing but defaults, a probe, or a rival at its best rate."""
    wanted = AUTO if line["method"] == OURS else SEARCH
    return line["kind"] == "run" and line["rates"] in (wanted, NONE)


def average_rows(table: Table, shots: str, *, least: Mapping[str, float]) -> Iterator[Row]:
    """Compare the averages over tasks of ours with those of rivals.

    A rival from several head starts is compared from each.

    Args:
        table: has ours under its own name.
        shots: of the rows compared.
        least: the target of ours − rival in points, by method. What has no average is left out.
    """
    ours = table.average((shots, OURS))
    for name in table.names:
        theirs = table.average((shots, name))
        target = least.get(name.partition("/")[0])
        if target is not None and ours is not None and theirs is not None:
            what = f"average of {len(table.tasks)} tasks, {shots}: {OURS} − {name}"
            yield Row(what, ours - theirs, f"≥ {target:g}", "points")
