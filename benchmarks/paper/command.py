r"""Run the paper's comparison: methods × tasks × seeds, one JSON line for each run.

    export HIFI_TEST_DATA=…   # has data/glue/<task>/{train,validation}.jsonl; or pass --data
    python -m benchmarks.paper --methods full lora-qv hifi --tasks rte cola --seeds 0 1 2 \
        --rates search --processes 2 --out results.jsonl
    python -m benchmarks.paper.tables results.jsonl --pair hifi lora-qv

The command may be killed at any moment and called again: finished runs are kept, and further calls
with other methods, tasks or seeds add to the same file. Several calls share the work on one file.

Shots: full trains on the training split (capped, --most-rows) and reports the best epoch on
validation; 16 is 16 rows of each class, the batch all of them; another N is N rows. Of few rows, as
many again choose the epoch, and the original validation split is reported. Few rows get more
epochs, until there are --least-steps.

Rates: search tries the same multiples of each method's usual rate, with seed 0, on a split of at
most 2,560 training rows, and keeps these trials; usual; a number; auto leaves rate and epochs to
the library.

Adapter, Compacter and SetFit need environments of their own, in the folder that HIFI_RIVALS names:
python -m benchmarks.paper.rivals.environments --help. SetFit is for tasks with classes, and few
rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper.cells import Request
from benchmarks.paper.methods import GROUPS, METHODS
from benchmarks.paper.processes import Work, run
from benchmarks.paper.rivals.environments import interpreter
from benchmarks.paper.tasks import TASKS
from hifi.backbones.models import resolve_model
from hifi.errors import DataError, HifiError, StorageError

if TYPE_CHECKING:
    from benchmarks.paper.cells import Cell
    from hifi.backbones.models import ModelSource

ALL_ROWS = "all"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_place(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        required=True,
        metavar="METHOD",
        help=f"{', '.join(METHODS)}; {' or '.join(GROUPS)} for all of a table or figure",
    )
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0])
    parser.add_argument("--shots", nargs="+", default=["full"], help="full, 16, or N rows")
    parser.add_argument(
        "--head-starts", nargs="+", default=["own"], help="own (the method's usual), random, probe"
    )
    parser.add_argument("--rates", default="usual", help="search, usual, auto, or a number")
    parser.add_argument(
        "--most-rows", type=_most_rows, default=3668, help=f"cap of full; {ALL_ROWS} for none"
    )
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--least-steps", type=positive, default=100)
    parser.add_argument("--max-length", type=positive, default=128, help="tokens")
    parser.add_argument("--processes", type=positive, default=1, help="of one thread each")
    parser.add_argument("--out", type=Path, required=True, help="the result file, .jsonl")
    return parser.parse_args(arguments)


def seed(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    count = seed(text)
    if not count:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return count


def _most_rows(text: str) -> int | None:
    return None if text == ALL_ROWS else positive(text)


def request_of(options: argparse.Namespace, *, source: ModelSource) -> Request:
    """Return what a command line asks for."""
    return Request(
        backbone=source.name,
        tasks=options.tasks,
        methods=[each for name in options.methods for each in GROUPS.get(name, (name,))],
        seeds=options.seeds,
        shots=options.shots,
        head_starts=options.head_starts,
        rates=options.rates,
        most_rows=options.most_rows,
        epochs=options.epochs,
        least_steps=options.least_steps,
        max_length=options.max_length,
    )


def folder_of(data: Path) -> Path:
    """Return the folder of the tasks' folders in that of ``--data``."""
    return data / "data" / "glue"


def add_place(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say where the data and the backbone are.

    Args:
        parser: gets them.
        required: whether the parser refuses a command line without the data.
    """
    root = os.environ.get("HIFI_TEST_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=root,
        required=required and root is None,
        help="folder with data/glue/<task>/{train,validation}.jsonl; default: $HIFI_TEST_DATA",
    )
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2", help="folder or hub id")


def check(options: argparse.Namespace) -> list[Cell]:
    """Check a command line before anything runs, and return its cells.

    Raises:
        HifiError: unknown names, settings that do not go together, missing data, backbone or
            environment.
    """
    cells = request_of(options, source=resolve_model(options.backbone)).cells()
    environments = {METHODS[cell.method].environment for cell in cells}
    for name in filter(None, environments):
        interpreter(name)
    for task in options.tasks:
        for split in ("train", "validation"):
            path = folder_of(options.data) / task / f"{split}.jsonl"
            if not path.is_file():
                raise DataError(f"{path} does not exist", split=split)
    if not options.out.resolve().parent.is_dir():
        raise StorageError(f"{options.out.parent} is not a folder: --out cannot be written")
    if options.out.is_dir():
        raise StorageError(f"{options.out} is a folder: --out is a file")
    return cells


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        cells = check(options)
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    what = Work(
        cells=cells, data=folder_of(options.data), backbone=options.backbone, out=options.out
    )
    return run(what, processes=options.processes)
