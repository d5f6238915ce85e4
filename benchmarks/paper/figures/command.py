"""Draw the paper's figures, and quality against stored bytes.

    python -m benchmarks.paper.figures richness correlation --seeds 0 1 2 --out figures
    python -m benchmarks.paper.figures sweeps bytes --results results.jsonl --out figures
    python -m benchmarks.paper.figures contours --shots 16 --steps 100 --out figures
    python -m benchmarks.paper.figures richness --redraw --out figures

Each figure is written to the folder as FIGURE.png, with its numbers in FIGURE.json; --redraw draws
from these numbers and computes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import processor, versions
from benchmarks.paper.command import add_place, folder_of, positive, seed
from benchmarks.paper.figures import (
    contours,
    correlation,
    richness,
    singular_values,
    stored_bytes,
    sweeps,
)
from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request
from benchmarks.paper.splits import FULL, check_shots
from benchmarks.paper.tasks import TASKS
from hifi.backbones.models import resolve_model
from hifi.errors import DataError, HifiError, InvalidArgumentError, StorageError
from hifi.files import write_atomically
from hifi.plots.canvas import save

FIGURES: Mapping[str, PaperFigure] = {
    "richness": richness.FIGURE,
    "correlation": correlation.FIGURE,
    "singular-values": singular_values.FIGURE,
    "sweeps": sweeps.FIGURE,
    "contours": contours.FIGURE,
    "bytes": stored_bytes.FIGURE,
}
_LEAST_GRID = 3


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    listed = "\n".join(f"  {name:17}{figure.words}" for name, figure in FIGURES.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper.figures",
        description=__doc__,
        epilog=f"figures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="+", metavar="FIGURE", help="see below")
    add_place(parser, required=False)
    parser.add_argument("--out", type=Path, required=True, help="the folder, made if it is missing")
    parser.add_argument("--redraw", action="store_true", help="draw from FIGURE.json of --out")
    parser.add_argument("--task", default="mrpc", help=", ".join(TASKS))
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        default=[0],
        help="richness, correlation: the runs; other figures have the first",
    )
    parser.add_argument("--steps", type=positive, help="of a training; default: one epoch")
    parser.add_argument("--results", type=Path, help="bytes, sweeps: a file of results, .jsonl")
    parser.add_argument("--shots", default=FULL, help="contours: full, 16, or N rows")
    parser.add_argument(
        "--directions",
        choices=contours.DIRECTIONS,
        default=contours.ENDS,
        help="contours: from the start to both results, or random ones around each result",
    )
    parser.add_argument(
        "--grid", type=positive, default=9, help="contours: points along a direction"
    )
    parser.add_argument(
        "--rows", type=positive, default=256, help="contours: validation rows of the loss"
    )
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Check a command line before anything is computed.

    Raises:
        HifiError: an unknown name, a number that is too small, or a missing file.
    """
    for param, names, known in (
        ("figures", options.figures, FIGURES),
        ("task", [options.task], TASKS),
    ):
        for name in names:
            if name not in known:
                raise InvalidArgumentError(param, value=name, limit=f"one of {', '.join(known)}")
    if options.grid < _LEAST_GRID:
        raise InvalidArgumentError("grid", value=options.grid, limit=f"at least {_LEAST_GRID}")
    check_shots(options.shots)
    if not options.redraw:
        _check_inputs(options)
    try:
        options.out.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {options.out} is no folder: {error.strerror}") from error


def _check_inputs(options: argparse.Namespace) -> None:
    needed = {each for name in options.figures for each in FIGURES[name].inputs}
    if "data" in needed:
        if options.data is None:
            raise DataError("--data or $HIFI_TEST_DATA has to name the folder of the data")
        for split in ("train", "validation"):
            path = folder_of(options.data) / options.task / f"{split}.jsonl"
            if not path.is_file():
                raise DataError(f"{path} does not exist", split=split)
    if "results" in needed and options.results is None:
        raise DataError("--results has to name a file of results: bytes is drawn from its runs")
    if options.results is not None and not options.results.is_file():
        raise DataError(f"{options.results} does not exist: --results is a file of results")


def request_of(options: argparse.Namespace) -> Request:
    """Return what a command line asks for."""
    return Request(
        source=resolve_model(options.backbone),
        data=folder_of(options.data or Path()),
        task=options.task,
        seeds=tuple(dict.fromkeys(options.seeds)),
        shots=check_shots(options.shots),
        steps=options.steps,
        results=options.results,
        directions=options.directions,
        grid=options.grid,
        rows=options.rows,
    )


def _numbers(name: str, options: argparse.Namespace) -> Numbers:
    """Compute and write a figure's numbers, or read them."""
    path = options.out / f"{name}.json"
    if options.redraw:
        return _read(path, name=name)
    request = request_of(options)
    found = {
        "figure": name,
        "backbone": request.source.name,
        "machine": processor(),
        "versions": versions(),
        **FIGURES[name].compute(request),
    }
    with write_atomically(path) as temporary:
        content = json.dumps(found, ensure_ascii=False, allow_nan=False)
        temporary.write_text(content, encoding="utf-8")
    return found


def _read(path: Path, *, name: str) -> Numbers:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; draw without --redraw"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON; draw without --redraw") from error
    if not isinstance(found, dict) or found.get("figure") != name:
        raise DataError(f"{path} does not hold the numbers of {name}; draw without --redraw")
    return found


def _draw(name: str, numbers: Numbers, *, folder: Path) -> list[str]:
    """Draw a figure; return what it says in lines.

    Raises:
        DataError: numbers are missing, in a file that was changed by hand.
    """
    figure, path = FIGURES[name], folder / f"{name}.png"
    try:
        save(figure.draw(numbers), path)
        head = f"{path}: {figure.words}, {numbers['backbone']}"
        return [head, *figure.notes(numbers)]
    except (LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"the numbers of {name} are not whole ({problem})") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        check(options)
        for name in dict.fromkeys(options.figures):
            numbers = _numbers(name, options)
            print("\n".join(_draw(name, numbers, folder=options.out)), flush=True)
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
