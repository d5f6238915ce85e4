"""``hifi select``: score the heads for a task without tuning them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.cli import options, output
from hifi.data.presets import fill_from_preset
from hifi.data.settings import GRADIENT_SCORES, SCORED_WITH, Hyperparameters, Scoring, declared

if TYPE_CHECKING:
    import torch

    from hifi.cli.progress import Display
    from hifi.selection.head_selection import HeadSelection
    from hifi.training.preparation import Prepared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi select``."""
    options.add_model(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write scores and selection as JSON, for `hifi tune --selection FILE`",
    )
    options.add_json(parser)
    options.add_data(parser)
    options.add_task(parser)
    options.add_selection(parser)
    options.add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Score the heads and show the best."""
    if args.out is not None:
        output.check_new_file(args.out)
    from rich.console import Console

    from hifi.backbones.devices import resolve_device
    from hifi.cli import render
    from hifi.cli.progress import Display, open_screen
    from hifi.files import write_atomically
    from hifi.training.events import TrainingEvent
    from hifi.training.reproducibility import reproducible_kernels

    splits = options.split_arguments(args)
    device = resolve_device(args.device)
    values = argparse.Namespace(**fill_from_preset(vars(args), preset=args.preset))
    settings = Hyperparameters(**options.given(values, SCORED_WITH))
    scoring = Scoring(**options.given(values, declared(Scoring)))
    # The same kernels as `hifi tune`, so that both select the same heads.
    with reproducible_kernels(device), open_screen(Console(stderr=True)) as screen:
        display = Display(screen)
        display.show(
            TrainingEvent(kind="loading", number=1, message=f"loading the data and {args.model}")
        )
        ready = _prepare(args, splits=splits, settings=settings, device=device)
        display.show(
            TrainingEvent(kind="loaded", number=2, message=ready.summary(), warnings=ready.warnings)
        )
        selection = _select(ready, settings=settings, scoring=scoring, display=display)
    document = _describe(ready, selection=selection)
    if args.out is not None:
        with write_atomically(args.out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.json:
        output.print_json(document)
        return output.EXIT_OK
    console = Console()
    render.print_heads(console, document)
    parameters = f"{document['trainable_parameters']:,}"
    entries = {
        "selected": f"{len(selection.heads)} of {document['num_layers'] * document['num_heads']} "
        f"heads; with the task head {parameters} parameters, {document['fraction']:.2%}",
        **({"written": str(args.out)} if args.out else {}),
    }
    console.print()
    output.print_facts(entries)
    return output.EXIT_OK


def _prepare(
    args: argparse.Namespace,
    *,
    splits: Mapping[str, Any],
    settings: Hyperparameters,
    device: torch.device,
) -> Prepared:
    from hifi.backbones.models import resolve_model
    from hifi.tasks import TaskSpec
    from hifi.training.preparation import prepare

    return prepare(
        resolve_model(args.model, revision=args.revision),
        spec=TaskSpec.of(options.task_of(args)),
        validation=None,
        settings=settings,
        device=device,
        **splits,
    )


def _select(
    ready: Prepared, *, settings: Hyperparameters, scoring: Scoring, display: Display
) -> HeadSelection:
    """Score the heads as ``hifi tune`` does: a gradient with the task head that it starts from."""
    from hifi.training.events import TrainingEvent
    from hifi.training.finetuning import check_heads, select_prepared
    from hifi.training.head_start import start_head

    def probe(done: int, total: int) -> None:
        display.show(TrainingEvent(kind="probing", number=3, step=done, total_steps=total))

    def show(seen: int, total: int) -> None:
        display.show(TrainingEvent(kind="selecting", number=5, step=seen, total_steps=total))

    if scoring.score in GRADIENT_SCORES:
        check_heads(ready, scoring=scoring)
        started = start_head(ready, settings=settings, on_batch=probe)
        warned = ready.warnings + started.warnings
        display.show(TrainingEvent(kind="yardsticks", number=4, warnings=warned))
    return select_prepared(ready, settings=settings, scoring=scoring, on_batch=show)


def _describe(ready: Prepared, *, selection: HeadSelection) -> dict[str, Any]:
    """Return the API's heads document without the fields that only a server knows."""
    from hifi.backbones.heads import describe, read_rows, task_head_names

    model = ready.loaded.model
    backbone = describe(model)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    names = task_head_names(model, extra=ready.loaded.task_head_modules)
    trained = sum(parameters[name] for name in names)
    for head in selection.heads:
        for projection in backbone.layers[head.layer].projections:
            rows = read_rows(model, projection, head.head)
            trained += sum(part.numel() for part in rows if part is not None)
    return {
        "object": "heads",
        "model": ready.source.name,
        "revision": ready.source.revision,
        "fingerprint": selection.fingerprint,  # to_dict has it too; readers expect it here
        **selection.to_dict(),
        "num_heads": backbone.num_heads,
        "head_dim": backbone.head_dim,
        "trainable_parameters": trained,
        "fraction": trained / sum(parameters.values()),
    }
