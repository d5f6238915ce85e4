"""Head deltas with random noise instead of training, and an artifact store full of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.data import MAX_LENGTH, MODEL, minilm
from benchmarks.speed.methods import random_heads
from hifi.tuning.tuner import HeadTuner
from store.orders import DeltaOrder
from store.storage import ArtifactStorage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta
    from hifi.selection.head_selection import HeadSelection

K = 3
NOISE = 0.01
_TASK = {
    "type": "classification",
    "text": ["sentence1", "sentence2"],
    "label": "label",
    "max_length": MAX_LENGTH,
}
_SELECTIONS = 64  # of heads; more deltas reuse the heads with other weights, which is faster


def noise_delta(
    model: PreTrainedModel,
    *,
    selection: HeadSelection,
    noise: float,
    seed: int,
    task: Mapping[str, Any],
    labels: Sequence[str] | None = None,
) -> HeadDelta:
    """Create a head delta of noise; of the model only the task head changes.

    ``noise`` is its standard deviation; ``task`` and ``labels`` are those of
    :meth:`HeadTuner.delta`.
    """
    tuner = HeadTuner(model, selection)
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuner.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    delta = tuner.delta(task=task, labels=labels)
    tuner.undo()
    return delta


def mrpc_delta(model: PreTrainedModel, selection: HeadSelection, *, seed: int) -> HeadDelta:
    """Create a head delta of MiniLM for MRPC."""
    return noise_delta(
        model, selection=selection, noise=NOISE, seed=seed, task=_TASK, labels=["0", "1"]
    )


def minilm_deltas(count: int) -> list[HeadDelta]:
    """Create head deltas of MiniLM for MRPC, of ``K`` random heads per layer."""
    model = minilm().eval()
    return [
        mrpc_delta(model, random_heads(model, k=K, seed=seed), seed=seed) for seed in range(count)
    ]


def store_minilm_deltas(artifacts: Path, *, count: int, tenants: int) -> list[DeltaOrder]:
    """Store head deltas of MiniLM in an artifact store, for each tenant in turn."""
    storage = ArtifactStorage(str(artifacts))
    selections = minilm_deltas(min(count, _SELECTIONS))
    generator = torch.Generator().manual_seed(1)
    orders = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "delta"
        for number in range(count):
            delta = selections[number % len(selections)]
            rows = {
                name: rows + NOISE * torch.randn(rows.shape, generator=generator)
                for name, rows in delta.rows.items()
            }
            replace(delta, rows=rows).save(file)
            tenant = f"ten_{number % tenants}"
            sha256 = storage.put(tenant, file).sha256
            orders.append(
                DeltaOrder(tenant=tenant, job=f"job_{number}", model=MODEL, sha256=sha256)
            )
    return orders
