"""``hifi merge``: a head delta and its backbone become one plain transformers model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.cli import options, output

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi merge``."""
    options.add_delta(parser)
    parser.add_argument(
        "--dtype",
        choices=options.DTYPES,
        help="of the merged model (default: that in which the backbone is stored)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for the model"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and write the ``save_pretrained`` layout, atomically."""
    output.check_new_directory(args.out)
    import torch

    from hifi.deltas.delta import HeadDelta
    from hifi.deltas.loading import load_backbone, write_merged_model
    from hifi.files import write_directory_atomically

    delta = HeadDelta.load(args.delta)
    backbone = load_backbone(delta, model=args.model, revision=args.revision)
    dtype: torch.dtype = getattr(torch, args.dtype) if args.dtype else backbone.model.dtype
    with write_directory_atomically(args.out) as folder:
        write_merged_model(folder, delta=delta, backbone=backbone, dtype=dtype)
        output.open_to_others(folder)
    _report(args, model=backbone.source.name, dtype=str(dtype).removeprefix("torch."), delta=delta)
    return output.EXIT_OK


def _report(args: argparse.Namespace, *, model: str, dtype: str, delta: HeadDelta) -> None:
    labels = delta.metadata.labels
    document: dict[str, Any] = {
        "object": "merged_model",
        "path": str(args.out),
        "bytes": output.size_of_folder(args.out),
        "model": model,
        "fingerprint": delta.metadata.fingerprint,
        "dtype": dtype,
        "heads": len(delta.heads),
        "labels": labels,
    }
    if args.json:
        output.print_json(document)
        return
    entries = {
        "merged": f"{len(delta.heads)} heads into {model}",
        "model": f"{args.out}  {output.format_bytes(document['bytes'])}  {dtype}",
        "labels": ", ".join(map(str, labels)) if labels else "none, a number",
    }
    output.print_facts(entries)
