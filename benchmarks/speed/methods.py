"""The methods whose speed and memory are compared, each on a fresh copy of the same model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.paper.methods.adapters import QUERY_KEY, QUERY_VALUE, add_lora
from hifi.backbones.heads import describe
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.first_token import first_token_only
from hifi.tuning.prefix import FrozenPrefix
from hifi.tuning.tuner import HeadTuner

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from hifi.data.allotments import Strategy

LORA_TARGETS = {"lora-qk": QUERY_KEY, "lora-qv": QUERY_VALUE}


@dataclass(frozen=True)
class Method:
    """A model prepared for training.

    Attributes:
        network: called by the training loop.
        parameters: trained by the optimizer.
        during: creates the context manager around the training loop.
    """

    network: nn.Module
    parameters: list[nn.Parameter]
    during: Callable[[], AbstractContextManager[Any]]


def prepare(name: str, model: PreTrainedModel) -> Method:
    """Prepare ``model`` for training with the method ``name``.

    Args:
        name: ``full``, ``lora-qk`` and ``lora-qv`` (stock PEFT, r=8), ``tuner`` (HeadTuner alone),
            ``hifi`` (HeadTuner with ``first_token_only``), ``hifi-mid-top``, or ``hifi-prefix``
            (mid-top with the frozen layers' states kept, as ``hifi.finetune`` runs it after the
            first epoch). The heads are random, which costs the same.
        model: a sequence classifier; changed in place.
    """
    network: nn.Module = model
    if name in ("tuner", "hifi", "hifi-mid-top", "hifi-prefix"):
        strategy: Strategy = "layer-wise" if name in ("tuner", "hifi") else "mid-top"
        tuner = HeadTuner(model, random_heads(model, k=3, seed=0, strategy=strategy))
        during = nullcontext if name == "tuner" else partial(first_token_only, model)
        network = _Prefixed(tuner) if name == "hifi-prefix" else model
        return Method(network, tuner.parameters(), during)
    if name in LORA_TARGETS:
        network = add_lora(model, LORA_TARGETS[name])
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Method(network, trained, nullcontext)


class _Prefixed(nn.Module):
    """A tuned model whose frozen layers are computed in its first step; it is always one batch."""

    def __init__(self, tuner: HeadTuner) -> None:
        super().__init__()
        self._model = tuner.model
        self._prefix = FrozenPrefix(tuner)

    def forward(self, **batch: Tensor) -> Any:
        return self._prefix(batch, keys=range(len(batch["labels"])))


def random_heads(
    model: PreTrainedModel, *, k: int, seed: int, strategy: Strategy = "layer-wise"
) -> HeadSelection:
    """Draw ``k`` heads of every layer, or of every upper layer."""
    backbone = describe(model)
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(backbone.num_layers, backbone.num_heads, generator=draw)
    return HeadSelection.from_scores(scores, k=k, strategy=strategy)


def precision(name: str) -> torch.autocast:
    """Run forward passes in ``float32``, or in bfloat16 by autocast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16")
