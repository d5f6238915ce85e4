"""A measured number and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


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
