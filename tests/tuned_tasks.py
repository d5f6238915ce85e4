"""Tasks on tiny backbones: their deltas, and the merged models that a bank must match."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from hifi.backbones.heads import HeadId, describe
from hifi.selection.head_selection import HeadSelection
from hifi.serving.bank import HeadBank
from hifi.tuning.tuner import HeadTuner
from tests.architectures import ARCHITECTURES, LAYERS, PAD, tiny_batch, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta

CLOSE = 1e-5


@dataclass(frozen=True)
class Tuned:
    """A task on a backbone: its delta, and the merged model as the reference."""

    delta: HeadDelta
    model: PreTrainedModel

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**batch).logits


def tune(
    architecture: str,
    heads: Sequence[HeadId],
    *,
    seed: int,
    labels: int | None,
    dtype: torch.dtype = torch.float32,
    pad: int = PAD,
) -> Tuned:
    """Make a delta from noise instead of training; without labels the task is a regression."""
    is_image = ARCHITECTURES[architecture].image
    settings = {} if is_image else {"pad_token_id": pad}
    model = tiny_model(architecture, num_labels=labels or 1, dtype=dtype, **settings)
    model.base_model.load_state_dict(bare(architecture, dtype=dtype).state_dict())
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuner.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    names = None if labels is None else [f"class {number}" for number in range(labels)]
    kind = "regression" if labels is None else "classification"
    task = {"type": kind, "label": "y", "text": ["t"], "pad_token_id": pad}
    if is_image:
        task = {"type": "image-classification", "label": "y", "image": "i"}
    delta = tuner.delta(task=task, labels=names)
    return Tuned(delta, tuner.detach().eval())


def heads_of(architecture: str, *, seed: int, per_layer: Sequence[int]) -> list[HeadId]:
    """Draw ``per_layer`` heads of each layer."""
    count = describe(tiny_model(architecture)).num_heads
    generator = torch.Generator().manual_seed(seed)
    return [
        HeadId(layer, int(head))
        for layer, wanted in enumerate(per_layer)
        for head in torch.randperm(count, generator=generator)[:wanted]
    ]


def bare(architecture: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return copy.deepcopy(tiny_model(architecture, dtype=dtype).base_model).eval()


def several(architecture: str) -> dict[str, Tuned]:
    """Return tasks that differ in heads, head counts and labels; they are built once."""
    return dict(_several(architecture))


@lru_cache(maxsize=2)
def _several(architecture: str) -> dict[str, Tuned]:
    plans = {"a": ((1, 1, 1), 2), "b": ((1, 1, 1), 2), "c": ((2, 0, 1), 3), "d": ((0, 2, 2), None)}
    if ARCHITECTURES[architecture].image:
        del plans["d"]
    return {
        name: tune(
            architecture,
            heads_of(architecture, seed=seed, per_layer=per_layer),
            seed=seed,
            labels=labels,
        )
        for seed, (name, (per_layer, labels)) in enumerate(plans.items())
    }


def bank_of(architecture: str, tasks: dict[str, Tuned]) -> HeadBank:
    bank = HeadBank(bare(architecture))
    for name, tuned in tasks.items():
        bank.add(name, tuned.delta)
    return bank


def row(batch: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    return {key: tensor[place : place + 1] for key, tensor in batch.items()}


def assert_answers(bank: HeadBank, name: str, tuned: Tuned) -> None:
    """Assert that a bank answers as the task's merged model."""
    batch = tiny_batch("bert", lengths=(5, 9))
    assert (torch.stack(bank.forward(batch, [name] * 2)) - tuned.answer(batch)).abs().max() <= CLOSE
