"""``hifi inspect``: show the contents of a head delta file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.cli import options, output

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi inspect``."""
    parser.add_argument("delta", type=Path, metavar="FILE", help="a head delta")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show a head delta's metadata, sizes and heads."""
    from hifi.deltas.delta import HeadDelta

    delta = HeadDelta.load(args.delta)
    document = describe_delta(delta, path=args.delta)
    if args.json:
        output.print_json(document)
    else:
        _show(delta, document)
    return output.EXIT_OK


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
    }
    output.print_facts(entries)
    console.print()
    render.print_heads(console, selection_of(delta))


def _pairs(entries: Mapping[str, object] | None) -> str:
    """Write a JSON object on one line, without empty entries."""
    return ", ".join(f"{k} {_plain(v)}" for k, v in (entries or {}).items() if v not in (None, {}))


def _plain(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def selection_of(delta: HeadDelta) -> dict[str, Any]:
    """Return the selection that a delta records; only its heads if the record is invalid."""
    from hifi.errors import InvalidArgumentError
    from hifi.selection.head_selection import HeadSelection

    try:
        selection = HeadSelection.from_dict(delta.metadata.selection)
    except InvalidArgumentError:
        layers = 1 + max(head.layer for head in delta.heads)
        selection = HeadSelection.from_heads(delta.heads, num_layers=layers)
    return selection.to_dict()
