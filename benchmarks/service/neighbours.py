"""A tenant's calls while another does its worst in one of many ways, from HTTP to HTTP.

Instead of ``hifi serve``, ``--production`` runs two of each process, on Postgres and Redis.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import percentiles
from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import end_in_order
from tests.integration.deployment import peak_megabytes
from tests.integration.hostile import ACTS, START
from tests.integration.neighbours import neighbours, production

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.integration.neighbours import Neighbours

ROUNDS = 10  # of a call of each kind under each act
REPETITIONS = 3  # of predictions alone, then next to the load
SECONDS = 20.0
_WARMUP_SECONDS = 2.0
_PAUSE_SECONDS = 0.05
_SHARES = {"median": 0.5, "p95": 0.95}


def main(
    *,
    rounds: int = ROUNDS,
    repetitions: int = REPETITIONS,
    seconds: float = SECONDS,
    run: Callable[[Path], AbstractContextManager[Neighbours]] = neighbours,
) -> Iterator[Row]:
    """Measure in one service; takes three to six minutes."""
    with tempfile.TemporaryDirectory() as folder, run(Path(folder) / "home") as site:
        _rounds(site, 3)  # loads what is loaded once
        yield _worst("no other tenant", _rounds(site, rounds))
        engine = 0.0
        for act in ACTS:
            with site.under(act) as heard:
                time.sleep(_WARMUP_SECONDS)
                found = _rounds(site, rounds)
                answers = f"{act} (answers by status: {dict(heard())})"
                pid = site.engine() if act in START else None  # else it has no job
                engine = max(engine, 0.0 if pid is None else peak_megabytes(pid))
            yield _worst(answers, found, target="≤ 2")
        yield from _ratios([_in_turn(site, seconds) for _ in range(repetitions)])
        for part, pid in site.parts().items():
            target = "≤ 200" if part == "gateway" else None
            yield Row(f"peak of resident memory: {part}", peak_megabytes(pid), target, unit="MB")
        yield Row("peak of resident memory: engine", engine, unit="MB")


def _rounds(site: Neighbours, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of the calls of each kind."""
    turns = [site.seconds() for _ in range(rounds)]
    return {kind: [turn[kind] for turn in turns] for kind in turns[0]}


def _worst(act: str, found: dict[str, list[float]], *, target: str | None = None) -> Row:
    told = "; ".join(
        f"{kind} {statistics.median(values):.2f}, {max(values):.2f}"
        for kind, values in found.items()
    )
    worst = max(map(max, found.values()))
    return Row(f"the slowest call next to {act}: median, worst: {told}", worst, target, unit="s")


def _in_turn(site: Neighbours, seconds: float) -> tuple[list[float], list[float]]:
    """Return the seconds of predictions alone, and next to predictions of the other tenant."""
    alone = _predictions(site, seconds / 4)
    with site.under("predictions"):
        time.sleep(_WARMUP_SECONDS)
        return alone, _predictions(site, seconds)


def _predictions(site: Neighbours, seconds: float) -> list[float]:
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took.append(site.time_prediction())
        time.sleep(_PAUSE_SECONDS)
    return took


def _ratios(turns: list[tuple[list[float], list[float]]]) -> Iterator[Row]:
    for name, share in _SHARES.items():
        pairs = [[percentiles(side, share)[0] for side in turn] for turn in turns]
        alone, loaded = ([1000 * pair[side] for pair in pairs] for side in (0, 1))
        ratios = sorted(after / before for before, after in zip(alone, loaded, strict=True))
        label = (
            f"one prediction next to predictions / alone: {name} "
            f"({statistics.median(loaded):.0f} ms / {statistics.median(alone):.0f} ms; "
            f"by turns: {', '.join(f'{ratio:.1f}' for ratio in ratios)})"
        )
        yield Row(label, statistics.median(ratios), "≤ 3")


if __name__ == "__main__":
    end_in_order()
    run = production if "--production" in sys.argv[1:] else neighbours
    is_quick = "--quick" in sys.argv[1:]
    print_rows(main(rounds=2, repetitions=1, seconds=10.0, run=run) if is_quick else main(run=run))
