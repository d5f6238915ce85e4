"""``hifi demo``: one real job, run with the commands that a user would type."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hifi.cli import main, options, output
from hifi.cli.docstrings import LIBRARIES, build_data_set
from hifi.errors import HifiError

MODEL = "all-MiniLM-L6-v2"
ROWS_PER_LIBRARY = 240
SEED = 0


class DemoError(HifiError):
    """A command of the demo failed, or what it promised is not so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi demo``."""
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="a new folder for everything; it is kept"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the temporary folder that is used without --dir"
    )
    parser.add_argument(
        "--model",
        default=MODEL,
        metavar="NAME",
        help="the backbone (default: %(default)s, which `make install` installs)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=ROWS_PER_LIBRARY,
        metavar="N",
        help="sentences of each library, at least 10 (default: %(default)s)",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Build a data set, tune, inspect, merge, export, and check what was promised."""
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        document = _demonstrate(args)
    if args.json:
        output.print_json(document)
    return output.EXIT_OK


def _demonstrate(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    is_kept = args.dir is not None or args.keep
    with _folder(args) as folder:
        rows = build_data_set(folder, rows_per_library=args.rows, seed=SEED)
        _say(
            f"Which library does a docstring come from: {', '.join(LIBRARIES)}?\n"
            f"{rows['train']} sentences for training and {rows['validation']} for validation, "
            f"from what is installed here, in {folder}"
        )
        reported = _run_commands(folder, model=args.model)
        _prove(folder, model=args.model, reported=reported)
        if is_kept:
            _say(f"Everything is in {folder}")
    seconds = time.perf_counter() - started
    _say(f"Done in {seconds:.0f} seconds.")
    return {
        "object": "demo",
        "path": str(folder) if is_kept else None,
        "model": args.model,
        "rows": rows,
        "metrics": reported["result"]["metrics"],
        "seconds": seconds,
    }


@contextlib.contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    if args.dir is not None:
        output.check_new_directory(args.dir)
        args.dir.mkdir(exist_ok=True)
        yield args.dir
    elif args.keep:
        yield Path(tempfile.mkdtemp(prefix="hifi-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="hifi-demo-") as name:
            yield Path(name)


def _run_commands(folder: Path, *, model: str) -> dict[str, Any]:
    """Run the commands; give the document that ``hifi tune`` printed."""
    delta = str(folder / "libraries.safetensors")
    report = folder / "tune.json"
    train, validation = (str(folder / f"{split}.jsonl") for split in ("train", "validation"))
    _run_command(
        *("tune", "--model", model, "--train", train, "--validation", validation),
        *("--text", "text", "--label", "library", "--metric", "accuracy"),
        # In float32 on the processor that checks it, the merged model must repeat the metric to
        # the last digit.
        *("--device", "cpu", "--precision", "float32", "--learning-rate", "1e-3"),
        *("--out", delta, "--json"),
        into=report,
    )
    tuned: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    _say(f"validation accuracy {tuned['result']['metrics']['accuracy']:.4f}")
    _run_command("inspect", delta)
    backbone = () if model == MODEL else ("--model", model)
    _run_command("merge", "--delta", delta, *backbone, "--out", str(folder / "merged"))
    _run_command("export-lora", "--delta", delta, *backbone, "--out", str(folder / "lora"))
    return tuned


def _run_command(*arguments: str, into: Path | None = None) -> None:
    """Show a command and run it.

    Args:
        arguments: what follows ``hifi``.
        into: the file that takes its output; by default the terminal does.

    Raises:
        DemoError: it failed.
    """
    _say(f"\n$ hifi {shlex.join(arguments)}" + (f" > {into}" if into else ""))
    with contextlib.ExitStack() as stack:
        if into is not None:
            file = stack.enter_context(into.open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(file))
        code = main(arguments)
    if code == output.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != output.EXIT_OK:
        raise DemoError(f"`hifi {arguments[0]}` failed (exit code {code}), as told above")


def _prove(folder: Path, *, model: str, reported: dict[str, Any]) -> None:
    """Check the two promises: the merged model is the tuned one, and merging can be undone.

    Raises:
        DemoError: one of them is broken.
    """
    from hifi.cli.loading import quiet_transformers
    from hifi.cli.proof import measure_accuracy, undo_is_exact
    from hifi.delta import HeadDelta

    tuned = reported["result"]["metrics"]["accuracy"]
    delta = HeadDelta.load(folder / "libraries.safetensors")
    with quiet_transformers():
        merged = measure_accuracy(folder / "merged", folder / "validation.jsonl", delta=delta)
        is_restored = undo_is_exact(delta, model=model)
    if merged != tuned:
        raise DemoError(f"the merged model's accuracy is {merged}, the tuned model's was {tuned}")
    _say(f"\nThe merged model, loaded by plain transformers: accuracy {merged:.4f}, the very same.")
    if not is_restored:
        raise DemoError("undoing the merge did not restore the backbone")
    _say("Merged into the backbone in memory and undone: every weight is what it was, bit for bit.")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
