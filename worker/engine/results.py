"""Write a finished job's artifacts: its head delta in every encoding, and as a LoRA adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hifi.backbones.models import identify_folder
from hifi.deltas.loading import cast_to, load_unchecked
from hifi.deltas.metadata import ENCODINGS
from worker.tar import write_tar

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

LORA = "lora"


def write_artifacts(delta: HeadDelta, *, model_path: Path, folder: Path) -> dict[str, Path]:
    """Write a new head delta in every encoding, and as a tar of a stock PEFT adapter.

    Equal deltas of equal backbones give equal bytes.

    Args:
        delta: from ``hifi.finetune``, with the backbone's rows.
        model_path: the backbone's folder. Its rows are compared with the delta's; its other
            weights are not read.
        folder: an existing folder for the files.

    Returns:
        ``float32``, ``bfloat16``, ``int8`` and ``lora`` to their files.

    Raises:
        BackboneMismatchError, ModelError: the backbone on disk has changed.
        StorageError, OSError: a file cannot be written.
    """
    files: dict[str, Path] = {}
    for encoding in ENCODINGS:
        files[encoding] = folder / f"delta.{encoding}.safetensors"
        delta.save(files[encoding], encoding=encoding)
    files[LORA] = folder / "lora.tar"
    _write_adapter(delta, model_path=model_path, file=files[LORA])
    return files


def _write_adapter(delta: HeadDelta, *, model_path: Path, file: Path) -> None:
    backbone = load_unchecked(identify_folder(model_path), delta=delta)
    tuned_at: torch.dtype = getattr(torch, delta.metadata.compute_dtype)
    # Wide enough for exact differences.
    model = cast_to(backbone.model, torch.promote_types(backbone.dtype, tuned_at))
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".lora-") as adapter:
        delta.to_lora(adapter, model)
        write_tar(Path(adapter), file)
