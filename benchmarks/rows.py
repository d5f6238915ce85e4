"""How times are measured, and how measured numbers are printed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

REPETITIONS = 5


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: what was measured, against what.
        value: the number; a ratio where no unit is given.
        reach: the target as a text such as ``≤ 1.2``; None where there is none.
        unit: of the value.
    """

    what: str
    value: float
    reach: str | None = None
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without one."""
        if self.reach is None:
            return None
        sign, limit = self.reach.split()
        return self.value <= float(limit) if sign == "≤" else self.value >= float(limit)


def print_rows(rows: Iterable[Row]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    print("| what | measured | reach | reached |")
    print("|---|---|---|---|")
    for row in rows:
        verdict = {True: "yes", False: "no", None: ""}[row.reached]
        number = f"{row.value:,.0f}" if abs(row.value) >= 1000 else f"{row.value:.3g}"
        print(f"| {row.what} | {number} {row.unit} | {row.reach or ''} | {verdict} |", flush=True)


def interleaved(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """Time tasks that take turns.

    Returns:
        Median seconds of each over :data:`REPETITIONS`, after a warm-up turn.
    """
    seconds: list[list[float]] = [[] for _ in tasks]
    for turn in range(REPETITIONS + 1):
        for task, taken in zip(tasks, seconds, strict=True):
            begin = time.perf_counter()
            task()
            if turn:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in seconds]
