"""Time tasks in turns, and print measurements as tables."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

REPETITIONS = 5


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: was measured, and against what.
        value: the number; a ratio without a unit.
        target: a text such as ``≤ 1.2``; None without a target.
        unit: of the value.
    """

    what: str
    value: float
    target: str | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the value meets the target; None without one."""
        if self.target is None:
            return None
        sign, limit = self.target.split()
        return self.value <= float(limit) if sign == "≤" else self.value >= float(limit)


def markdown_rows(rows: Iterable[Row]) -> Iterator[str]:
    """Format a Markdown table, each row as soon as it is measured."""
    yield "| what | measured | target | met |"
    yield "|---|---|---|---|"
    for row in rows:
        verdict = {True: "yes", False: "no", None: ""}[row.is_met]
        number = f"{row.value:,.0f}" if abs(row.value) >= 1000 else f"{row.value:.3g}"
        yield f"| {row.what} | {number} {row.unit} | {row.target or ''} | {verdict} |"


def print_rows(rows: Iterable[Row]) -> None:
    """Print a Markdown table, each row as soon as it is measured."""
    for text in markdown_rows(rows):
        print(text, flush=True)


def interleaved(tasks: Sequence[Callable[[], object]], *, turns: int = REPETITIONS) -> list[float]:
    """Time tasks in turns, after a warm-up turn; return the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for turn in range(turns + 1):
        for task, taken in zip(tasks, seconds, strict=True):
            begin = time.perf_counter()
            task()
            if turn:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in seconds]
