"""Head deltas made by hand: rows read from a model, with noise instead of training."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hifi.backbones.fingerprint import backbone_fingerprint, rows_fingerprint
from hifi.backbones.heads import HeadId, describe, read_rows, task_head_names
from hifi.deltas.delta import DeltaMetadata, HeadDelta, row_key

if TYPE_CHECKING:
    import transformers as tf

ENCODINGS = ("float32", "bfloat16", "int8")
HEADS = (HeadId(0, 1), HeadId(2, 0), HeadId(2, 1))
SELECTION = {
    "k": 2,
    "layers": [
        {"layer": 0, "selected": [1]},
        {"layer": 1, "selected": []},
        {"layer": 2, "selected": [0, 1]},
    ],
}


def rows_of(model: tf.PreTrainedModel, *, heads: Sequence[HeadId] = HEADS) -> dict[str, Tensor]:
    """Copy the rows of some heads, keyed by name."""
    layers = describe(model).layers
    rows = {}
    for head in heads:
        for projection in layers[head.layer].projections:
            weight, bias = read_rows(model, projection, head.head)
            rows[row_key(head, projection.name, "weight")] = weight
            if bias is not None:
                rows[row_key(head, projection.name, "bias")] = bias
    return rows


def hand_made_delta(
    model: tf.PreTrainedModel,
    *,
    heads: Sequence[HeadId] = HEADS,
    seed: int = 7,
    task_head: bool = True,
    extra: Sequence[str] = (),
    **metadata: Any,
) -> HeadDelta:
    """Build a delta as a training run on ``model`` could produce it."""
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: Tensor) -> Tensor:
        return tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)

    base = rows_of(model, heads=heads)
    names = task_head_names(model, extra=extra) if task_head else ()
    entries: dict[str, Any] = {
        "model": "owner/tiny",
        "revision": "0123abcd",
        "fingerprint": backbone_fingerprint(model),
        "rows_fingerprint": rows_fingerprint(base),
        "architecture": model.config.model_type,
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "task": {"type": "classification", "max_length": 128, "text": ["sentence"]},
        "labels": ["no", "yes"],
        "selection": SELECTION if tuple(heads) == HEADS else {},
        "training": {"epochs": 3, "learning_rate": 3e-4},
    }
    return HeadDelta(
        rows={name: near(tensor) for name, tensor in base.items()},
        task_head={name: near(model.get_parameter(name)) for name in names},
        metadata=DeltaMetadata(**{**entries, **metadata}),
        base=base,
    )


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy every parameter."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def equal_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Compare names, dtypes, shapes and every bit (0 and -0 differ)."""
    return left.keys() == right.keys() and all(
        tensor.dtype == right[name].dtype
        and tensor.shape == right[name].shape
        and torch.equal(_bytes(tensor), _bytes(right[name]))
        for name, tensor in left.items()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def bytes_in_every_encoding(delta: HeadDelta, *, folder: Path) -> dict[str, bytes]:
    """Save a delta once per encoding; return each file's bytes."""
    for encoding in ENCODINGS:
        delta.save(folder / encoding, encoding=encoding)
    return {encoding: (folder / encoding).read_bytes() for encoding in ENCODINGS}


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a safetensors file into header and body."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: dict[str, Any] | str, body: bytes) -> bytes:
    """Join header and body into a safetensors file; the header ends at a multiple of 8."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
