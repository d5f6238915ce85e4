"""``hifi inspect``: show the contents of a head delta file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.cli import options, output
from hifi.errors import shorten

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta


_TITLE_CHARACTERS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi inspect``."""
    parser.add_argument("delta", type=Path, metavar="FILE", help="a head delta")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also draw scores, information richness and correlation of the heads into FILE, whose "
        "ending is .pdf, .png or .svg; needs `pip install 'hifi[plots]'`",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show a head delta's metadata, sizes and heads."""
    if args.plot is not None:
        _check_picture(args.plot)
    from hifi.deltas.delta import HeadDelta

    delta = HeadDelta.load(args.delta)
    document = describe_delta(delta, path=args.delta)
    if args.plot is not None:
        _draw(delta, path=args.delta, picture=args.plot)
        document["plot"] = str(args.plot)
    if args.json:
        output.print_json(document)
    else:
        _show(delta, document)
    return output.EXIT_OK


def _check_picture(path: Path) -> None:
    """Check that a picture can be drawn and written, before any work is done for it."""
    from hifi.plots import check_ending

    check_ending(path, param="plot")
    output.check_new_file(path)


def _draw(delta: HeadDelta, *, path: Path, picture: Path) -> None:
    from hifi import plots

    title = f"{path.name}: {len(delta.heads)} heads of {delta.metadata.model}"
    title = output.printable(shorten(title, characters=_TITLE_CHARACTERS))
    plots.save(plots.overview(delta, title=title), picture)


def describe_delta(delta: HeadDelta, *, path: Path) -> dict[str, Any]:
    """Return the JSON document of a delta file."""
    return {
        "object": "head_delta",
        "path": str(path),
        **output.describe_file(path),
        "heads": [{"layer": head.layer, "head": head.head} for head in delta.heads],
        "trainable_parameters": sum(
            tensor.numel() for part in (delta.rows, delta.task_head) for tensor in part.values()
        ),
        "task_head": {name: list(tensor.shape) for name, tensor in delta.task_head.items()},
        "metadata": dataclasses.asdict(delta.metadata),
    }


def _show(delta: HeadDelta, document: dict[str, Any]) -> None:
    from rich.console import Console

    from hifi.cli import render

    console = Console()
    metadata = delta.metadata
    size = output.format_bytes(document["bytes"])
    head = ", ".join(f"{name} {shape}" for name, shape in document["task_head"].items())
    entries = {
        "file": f"{document['path']}  {size}  {metadata.encoding}",
        "sha256": document["sha256"],
        "backbone": f"{metadata.model}  {metadata.architecture}"
        + (f"  revision {metadata.revision}" if metadata.revision else ""),
        "fingerprint": metadata.fingerprint,
        "replaces rows": metadata.rows_fingerprint,
        "tuned at": metadata.compute_dtype,
        "task": _pairs(metadata.task) or "not recorded",
        "labels": ", ".join(map(str, metadata.labels or ())) or "none",
        "training": _pairs(metadata.training) or "not recorded",
        "heads": f"{len(delta.heads)}, {document['trainable_parameters']:,} parameters "
        "with the task head",
        "task head": head or "none",
        "selection": _pairs({k: v for k, v in metadata.selection.items() if k != "layers"}),
        "created by": metadata.created_by,
        "picture": document.get("plot", ""),
    }
    output.print_facts(entries)
    console.print()
    render.print_heads(console, delta.selection.to_dict())


def _pairs(entries: Mapping[str, object] | None) -> str:
    """Write a JSON object on one line, without empty entries."""
    return ", ".join(f"{k} {_plain(v)}" for k, v in (entries or {}).items() if v not in (None, {}))


def _plain(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
