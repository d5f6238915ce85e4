"""``hifi tune``: fine-tune on a data set and write a head delta file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.cli import options, output
from hifi.cli.report import print_report
from hifi.data.settings import CHECKPOINT_SECONDS, Hyperparameters, Scoring, declared
from hifi.errors import InvalidArgumentError, JobCancelled, JobPaused

if TYPE_CHECKING:
    from rich.console import Console

    from hifi.selection.head_selection import HeadSelection
    from hifi.training.events import Control, TrainingEvent
    from hifi.training.finetuning import FinetuneResult

# Options with the names of arguments of finetune, without the settings.
_OPTIONS = ("model", "revision", "preset", "device", "checkpoint_dir", "checkpoint_seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi tune``."""
    options.add_model(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the head delta to write; an existing file is replaced",
    )
    parser.add_argument(
        "--encoding",
        choices=options.ENCODINGS,
        default="float32",
        help="float32 is exact; bfloat16 and int8 take a half and a quarter of its size, and "
        "reading them needs the backbone (default: %(default)s)",
    )
    options.add_json(parser)
    options.add_held_out(options.add_data(parser))
    options.add_metric(options.add_task(parser))
    options.add_given_selection(options.add_selection(parser))
    options.add_training(parser)
    options.add_machine(parser)
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument(
        "--checkpoint-dir",
        type=Path,
        metavar="DIR",
        help="save checkpoints here, and resume from an existing one; removed once the head delta "
        "is written",
    )
    checkpoints.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        metavar="SECONDS",
        help="time between checkpoints (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Fine-tune and write the head delta."""
    output.check_new_file(args.out)
    from rich.console import Console

    from hifi.cli.interrupt import stop_on_interrupt
    from hifi.cli.progress import Display, open_screen
    from hifi.cli.render import print_heads
    from hifi.training.checkpoint import remove_checkpoints
    from hifi.training.events import Control

    report = Console(stderr=args.json)
    stop = Control.CANCEL if args.checkpoint_dir is None else Control.PAUSE
    has_shown_heads = False  # a resumed run does not select again
    try:
        with (
            open_screen(Console(stderr=True)) as screen,
            stop_on_interrupt(stop) as answer,
        ):
            display = Display(screen)

            def on_event(event: TrainingEvent) -> Control:
                nonlocal has_shown_heads
                display.show(event)
                if event.selection is not None:
                    has_shown_heads = True
                    with display.make_room():
                        print_heads(report, event.selection.to_dict())
                return answer()

            result = _finetune(args, on_event=on_event)
    except JobPaused as stopped:
        then = " before the first checkpoint; run the same command again to start again"
        if stopped.checkpoint:
            then = f"; checkpoint {stopped.checkpoint} saved; run the same command again to resume"
        return output.fail(f"interrupted{then}", code=output.EXIT_INTERRUPTED)
    except JobCancelled:
        return output.fail(
            f"interrupted; {args.out} was not written (with --checkpoint-dir an interrupted run "
            "can be resumed)",
            code=output.EXIT_INTERRUPTED,
        )
    result.delta.save(args.out, encoding=args.encoding)
    if args.checkpoint_dir is not None:
        remove_checkpoints(args.checkpoint_dir)
    if not has_shown_heads:
        print_heads(report, result.selection.to_dict())
    _report(args, result=result, console=report)
    return output.EXIT_OK


def _finetune(
    args: argparse.Namespace, *, on_event: Callable[[TrainingEvent], Control]
) -> FinetuneResult:
    from hifi.training.finetuning import finetune

    return finetune(
        task=options.task_of(args),
        on_event=on_event,
        **options.split_arguments(args),
        **options.given(args, (*_OPTIONS, *declared(Scoring), *declared(Hyperparameters))),
        selection=None if args.selection is None else _read_selection(args.selection),
    )


def _read_selection(path: Path) -> HeadSelection:
    from hifi.selection.head_selection import HeadSelection

    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            "selection", value=str(path), limit=f"a file that `hifi select --out` wrote ({error})"
        ) from error
    return HeadSelection.from_dict(entry)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics with None for the loss of labels that are too large to be squared."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _report(args: argparse.Namespace, *, result: FinetuneResult, console: Console) -> None:
    delta = result.delta
    document: dict[str, Any] = {
        "object": "finetune",
        "model": delta.metadata.model,
        "fingerprint": delta.metadata.fingerprint,
        "selection": {
            "heads": [{"layer": head.layer, "head": head.head} for head in delta.heads],
            "trainable_parameters": result.trainable_parameters,
            "fraction": result.fraction,
        },
        "result": {
            "metrics": dict(result.metrics),
            "test": _finite(result.test) or None,
            "report": None if result.report is None else result.report.to_json(),
            "yardsticks": {name: dict(known) for name, known in result.yardsticks.items()},
            "best_step": result.best_step,
            "train_seconds": result.train_seconds,
            "selection_seconds": result.selection_seconds,
            "samples_per_second": result.samples_per_second,
        },
        "warnings": [warning.to_json() for warning in result.warnings],
        "artifact": {
            "path": str(args.out),
            "encoding": args.encoding,
            **output.describe_file(args.out),
        },
    }
    if args.json:
        output.print_json(document)
        return
    metrics = output.format_metrics(result.metrics) if result.metrics else "no validation split"
    training = delta.metadata.training
    most = "up to " if training["early_stopping_patience"] else ""
    epochs = f"{most}{training['epochs']} epoch{'s' * (training['epochs'] > 1)}"
    entries = {
        "metrics": f"{metrics}  (step {result.best_step})",
        "test": output.format_metrics(result.test),
        **{name: output.format_metrics(known) for name, known in result.yardsticks.items()},
        "trained": f"{len(delta.heads)} heads and the task head, {result.trainable_parameters:,} "
        f"parameters, {epochs} at {training['learning_rate']:.3g}, in "
        f"{output.format_seconds(result.train_seconds)}, {result.samples_per_second:.0f} samples/s",
        "written": f"{args.out}  {output.format_bytes(document['artifact']['bytes'])}  "
        f"{args.encoding}",
    }
    console.print()
    output.print_facts(entries)
    if result.report is not None:
        print_report(result.report.to_json())
