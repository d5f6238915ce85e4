"""``hifi merge``: merge a head delta into its backbone and write a plain transformers model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hifi.cli import options, output
from hifi.data.task_types import find_task_type


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi merge``."""
    options.add_delta(parser)
    parser.add_argument(
        "--dtype",
        choices=options.DTYPES,
        help="the merged model's dtype (default: the backbone's stored dtype)",
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
    dtype: torch.dtype = getattr(torch, args.dtype) if args.dtype else backbone.dtype
    with write_directory_atomically(args.out) as folder:
        write_merged_model(folder, delta=delta, backbone=backbone, dtype=dtype)
        output.open_to_others(folder)
    document = {
        "object": "merged_model",
        "path": str(args.out),
        "bytes": output.size_of_folder(args.out),
        "model": backbone.source.name,
        "fingerprint": delta.metadata.fingerprint,
        "dtype": str(dtype).removeprefix("torch."),
        "heads": len(delta.heads),
        "task": backbone.task["type"],
        "num_labels": backbone.model.config.num_labels,
        "labels": delta.metadata.labels,
    }
    return output.report(document, _describe, as_json=args.json)


def _describe(merged: dict[str, Any]) -> dict[str, str]:
    return {
        "merged": f"{merged['heads']} heads into {merged['model']}",
        "model": f"{merged['path']}  {output.format_bytes(merged['bytes'])}  {merged['dtype']}",
        "labels": _describe_labels(merged),
    }


def _describe_labels(merged: dict[str, Any]) -> str:
    if merged["labels"]:
        return ", ".join(map(str, merged["labels"]))
    if find_task_type(merged["task"]).has_classes:
        return f"{merged['num_labels']} without names"
    return "none, a number"
