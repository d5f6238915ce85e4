"""``hifi export-lora``: export a head delta as a LoRA adapter for stock PEFT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hifi.cli import options, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi export-lora``."""
    options.add_delta(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for the adapter"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the adapter, atomically."""
    output.check_new_directory(args.out)
    import torch

    from hifi.deltas.delta import HeadDelta
    from hifi.deltas.loading import cast_to, load_backbone

    delta = HeadDelta.load(args.delta)
    backbone = load_backbone(delta, model=args.model, revision=args.revision)
    tuned_at = getattr(torch, delta.metadata.compute_dtype)
    cast_to(backbone.model, torch.promote_types(backbone.dtype, tuned_at))
    delta.to_lora(args.out, backbone.model)
    document = {
        "object": "lora_adapter",
        "path": str(args.out),
        "bytes": output.size_of_folder(args.out),
        "model": backbone.source.name,
        "fingerprint": delta.metadata.fingerprint,
        "heads": len(delta.heads),
    }
    return output.report(document, _describe, as_json=args.json)


def _describe(exported: dict[str, Any]) -> dict[str, str]:
    return {
        "exported": f"{exported['heads']} heads of {exported['model']}",
        "adapter": f"{exported['path']}  {output.format_bytes(exported['bytes'])}",
    }
