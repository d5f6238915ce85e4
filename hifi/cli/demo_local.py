"""The demo without a service: the commands of the library alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hifi.cli import main, output
from hifi.cli.demo_story import DELTA, MODEL, TASK, DemoError, prove, say, show_command


def demonstrate(folder: Path, *, model: str) -> dict[str, Any]:
    """Tune, inspect, merge, export, and prove what was promised.

    Args:
        folder: with the data set; everything else is put there too.
        model: the backbone's name or folder.

    Returns:
        The metrics of the tuned model.

    Raises:
        DemoError: a command failed, or a promise is broken.
    """
    delta = str(folder / DELTA)
    report = folder / "tune.json"
    train, validation = (str(folder / f"{split}.jsonl") for split in ("train", "validation"))
    _run_command(
        *("tune", "--model", model, "--train", train, "--validation", validation),
        *(*TASK, "--device", "cpu", "--out", delta, "--json"),
        into=report,
    )
    tuned = json.loads(report.read_text(encoding="utf-8"))
    metrics: dict[str, Any] = tuned["result"]["metrics"]
    say(f"validation accuracy {metrics['accuracy']:.4f}")
    _run_command("inspect", delta)
    backbone = () if model == MODEL else ("--model", model)
    _run_command("merge", "--delta", delta, *backbone, "--out", str(folder / "merged"))
    _run_command("export-lora", "--delta", delta, *backbone, "--out", str(folder / "lora"))
    prove(folder, model=model, metrics=metrics)
    return metrics


def _run_command(*arguments: str, into: Path | None = None) -> None:
    """Show a command and run it.

    Args:
        arguments: what follows ``hifi``.
        into: the file that takes its output; by default the terminal does.

    Raises:
        DemoError: it failed.
    """
    show_command(*arguments, into=into)
    with contextlib.ExitStack() as stack:
        if into is not None:
            file = stack.enter_context(into.open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(file))
        code = main(arguments)
    if code == output.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != output.EXIT_OK:
        raise DemoError(f"`hifi {arguments[0]}` failed (exit code {code}), as told above")
