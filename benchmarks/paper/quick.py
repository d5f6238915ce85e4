"""Rerun a small part of the committed runs, and check that it agrees with them.

    python -m benchmarks.paper.quick    # or: make bench-quick

The part: 64 training rows, seed 0, all tasks; the probe, HiFi with default settings, LoRA at its
best rate, each from its own head start; of these the shortest, as many as took five minutes in one
process. The command runs two processes of one thread and fails after ten minutes, which leaves time
to a machine that is four times slower. The trials of rates are those committed.

Two runs agree if

* rows, settings, backbone and the number of trained weights are the same;
* stored bytes differ by at most 1 % (a file also names the versions of the libraries);
* at least 80 % of the heads of either are in both (Jaccard): scores that are nearly equal may be
  ranked the other way by another processor;
* the metric differs by at most the method's bound: rounding differs between processors, and
  training multiplies it.

The status is 0 if all agree, 1 if not, 2 if there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper.cells import Cell
from benchmarks.paper.command import add_place, folder_of, positive
from benchmarks.paper.methods import METHODS
from benchmarks.paper.processes import Work, run
from benchmarks.paper.results import COMMITTED, read_lines
from benchmarks.paper.tables.ablation import heads_of, jaccard
from benchmarks.paper.tables.against import is_at_its_best
from hifi.backbones.models import resolve_model
from hifi.errors import DataError, HifiError

if TYPE_CHECKING:
    from benchmarks.paper.tables.table import Line, Lines

SHOTS, SEED = "64", 0
SECONDS = 600  # of the command
RECORDED_SECONDS = 300  # of what it runs again
# The methods that are run again, each with the largest difference of the metric, in points.
BOUNDS: Mapping[str, float] = {"probe": 0.5, "hifi-default": 3.0, "lora-qv": 3.0}
_SAME = ("rows", "batch_size", "trained_epochs", "learning_rate", "fingerprint", "trained_weights")
_BYTES = 0.01
_OVERLAP = 0.8


def choose(lines: Lines, *, backbone: str) -> dict[Cell, Line]:
    """Return the committed runs that are run again, the shortest first.

    Raises:
        DataError: there are none.
    """
    found = [
        line
        for line in lines
        if is_at_its_best(line)
        and line["backbone"] == backbone
        and (line["shots"], line["seed"]) == (SHOTS, SEED)
        and line["method"] in BOUNDS
        and line["head_start"] == METHODS[line["method"]].head_starts[0]
        and line["value"] is not None
    ]
    found.sort(key=lambda line: line["total_seconds"])
    ends = accumulate(line["total_seconds"] for line in found)
    timed = zip(found, ends, strict=True)
    chosen = {Cell.of(line): line for line, end in timed if end <= RECORDED_SECONDS}
    if not chosen:
        wanted = f"{', '.join(BOUNDS)} with {SHOTS} rows, seed {SEED} and {backbone}"
        raise DataError(f"no committed runs to compare with: {wanted}")
    return chosen


def disagreements(committed: Line, now: Line) -> Iterator[str]:
    """Iterate over what differs by more than the bounds between two runs of one cell."""
    if now["value"] is None:
        yield f"diverged: {now['error']}"
        return
    for name in _SAME:
        if committed[name] != now[name]:
            yield f"{name} was {committed[name]} and is {now[name]}"
    bound = BOUNDS[committed["method"]]
    if not abs(now["value"] - committed["value"]) <= bound / 100:
        yield f"{committed['metric']} differs by more than {bound} points"
    sizes = now["stored_bytes"]
    for encoding, size in committed["stored_bytes"].items():
        if not abs(sizes.get(encoding, 0) - size) <= _BYTES * size:
            yield f"{encoding}: {size} bytes were stored, now {sizes.get(encoding, 0)}"
    before, after = heads_of(committed), heads_of(now)
    if before != after and jaccard(before, after) < _OVERLAP:
        yield f"only {len(before & after)} of {len(before)} heads are the same"


def rerun(
    committed: Mapping[Cell, Line], trials: Lines, *, options: argparse.Namespace
) -> dict[Cell, Line]:
    """Run cells again, with the rates of the committed trials; those unfinished are missing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        out.write_text("".join(f"{json.dumps(line)}\n" for line in trials), encoding="utf-8")
        what = Work(
            cells=list(committed),
            data=folder_of(options.data),
            backbone=options.backbone,
            out=out,
        )
        run(what, processes=options.processes, seconds=options.seconds)
        found = {Cell.of(line): line for line in read_lines(out)}
    return {cell: found[cell] for cell in committed if cell in found}


def report(committed: Mapping[Cell, Line], now: Mapping[Cell, Line]) -> Iterator[tuple[str, bool]]:
    """Iterate over the rows of a Markdown table, each with whether the runs agree."""
    yield "| task | method | committed | now | bound | agrees |", True
    yield "|---|---|---|---|---|---|", True
    for cell, line in committed.items():
        again = now.get(cell)
        problems = ["not finished"] if again is None else list(disagreements(line, again))
        value = None if again is None else again["value"]
        numbers = [f"{100 * line['value']:.2f}", "–" if value is None else f"{100 * value:.2f}"]
        verdict = f"no: {'; '.join(problems)}" if problems else "yes"
        texts = [cell.task, cell.method, *numbers, f"{BOUNDS[cell.method]}", verdict]
        yield f"| {' | '.join(texts)} |", not problems


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper.quick",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="*", type=Path, default=[COMMITTED], metavar="FILE", help="committed runs"
    )
    add_place(parser)
    parser.add_argument("--processes", type=positive, default=2, help="of one thread each")
    parser.add_argument("--seconds", type=positive, default=SECONDS, help="the longest time")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        lines = [line for path in options.files for line in read_lines(path)]
        committed = choose(lines, backbone=resolve_model(options.backbone).name)
        wanted = {trial for cell in committed for trial in cell.trials}
        trials = [line for line in lines if Cell.of(line) in wanted]
        now = rerun(committed, trials, options=options)
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    rows = list(report(committed, now))
    print("\n".join(text for text, _ in rows))
    return 0 if all(agrees for _, agrees in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
