"""The compared fine-tuning methods, each on a fresh copy of the same model."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hifi.backbones.heads import HeadId, describe, task_head_names
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.first_token import first_token_only
from hifi.tuning.tuner import HeadTuner

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

LORA_TARGETS = {"lora-qk": ["query", "key"], "lora-qv": ["query", "value"]}


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


def prepare(name: str, model: PreTrainedModel, *, selection: HeadSelection | None = None) -> Method:
    """Prepare ``model`` for training with the method ``name``.

    Args:
        name: ``full``, ``head-only``, ``lora-qk`` and ``lora-qv`` (stock PEFT, r=8), ``tuner``
            (HeadTuner alone), ``hifi`` (HeadTuner as ``hifi.finetune`` runs it: with
            ``first_token_only``) or ``hifi-mid-top``.
        model: a sequence classifier; changed in place.
        selection: the heads; by default three random ones per layer, which cost the same.
    """
    if name in ("tuner", "hifi", "hifi-mid-top"):
        strategy = "mid-top" if name == "hifi-mid-top" else "layer-wise"
        tuner = HeadTuner(model, selection or random_heads(model, k=3, seed=0, strategy=strategy))
        during = nullcontext if name == "tuner" else partial(first_token_only, model)
        return Method(model, tuner.parameters(), during)
    network: nn.Module = model
    if name in LORA_TARGETS:
        targets = LORA_TARGETS[name]
        network = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets)
        )
    elif name == "head-only":
        head = set(task_head_names(model))
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name in head)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Method(network, trained, nullcontext)


def random_heads(
    model: PreTrainedModel, *, k: int, seed: int, strategy: str = "layer-wise"
) -> HeadSelection:
    """Draw ``k`` heads of every layer, or of every upper layer."""
    backbone = describe(model)
    generator = random.Random(seed)  # noqa: S311 - an ablation, not a secret
    first = 0 if strategy == "layer-wise" else -(-backbone.num_layers // 2)
    heads = [
        HeadId(layer, head)
        for layer in range(first, backbone.num_layers)
        for head in generator.sample(range(backbone.num_heads), k)
    ]
    return HeadSelection.from_heads(heads, num_layers=backbone.num_layers)


def precision(name: str) -> torch.autocast:
    """Run forward passes in ``float32``, or in bfloat16 by autocast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16")
