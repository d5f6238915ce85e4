"""Methods of stock PEFT: LoRA, prefix-tuning, (IA)³ and SHiRA, each with the task head."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    ShiraConfig,
    get_peft_model,
)
from peft.utils import ModulesToSaveWrapper

from benchmarks.paper.methods.rival import Rival, head_modules
from hifi.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

QUERY_KEY, QUERY_VALUE = ("query", "key"), ("query", "value")
_CLASSIFIER = "SEQ_CLS"
RANK = 8
_VIRTUAL_TOKENS = 20  # as in PEFT's own example of sequence classification


class Adapted(Rival):
    """A model with a PEFT adapter; PEFT says what is trained and writes what is stored."""

    network: PeftModel

    def head(self) -> set[str]:
        """Return the names of the task head's parameters, which PEFT keeps in its own modules."""
        saved = [each for each in self.network.modules() if isinstance(each, ModulesToSaveWrapper)]
        own = {id(parameter) for module in saved for parameter in module.parameters()}
        return {name for name, parameter in self.trained().items() if id(parameter) in own}

    def origin(self, start: Tensor) -> Tensor:
        """Return the start if its numbers are all equal, else zero: LoRA's A is drawn."""
        is_constant = bool((start == start.flatten()[0]).all())
        return start.detach().clone() if is_constant else torch.zeros_like(start)

    def stored_bytes(self) -> int:
        """Return the size of the adapter's weights file."""
        with tempfile.TemporaryDirectory() as folder:
            self.network.save_pretrained(folder)
            return (Path(folder) / "adapter_model.safetensors").stat().st_size


def add_lora(
    model: PreTrainedModel,
    targets: Sequence[str],
    *,
    rank: int = RANK,
    modules_to_save: Sequence[str] = (),
) -> PeftModel:
    """Add LoRA with alpha = 2r to these projections of every layer."""
    config = LoraConfig(
        task_type=_task_type(model),
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        modules_to_save=list(modules_to_save),
    )
    return get_peft_model(model, config)


def _task_type(model: PreTrainedModel) -> str | None:
    """Return PEFT's type of a model; with one of another type it would expect other outputs."""
    return _CLASSIFIER if type(model).__name__.endswith("ForSequenceClassification") else None


def lora(
    targets: Sequence[str], *, rank: int = RANK
) -> Callable[[Prepared, Hyperparameters], Rival]:
    """Return the builder of LoRA on these projections."""

    def build(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - every builder's
        saved = head_modules(ready)
        return Adapted(add_lora(ready.loaded.model, targets, rank=rank, modules_to_save=saved))

    return build


def prefix_tuning(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - as above
    """Train keys and values that every layer sees in front of its own (Li & Liang, ACL 2021).

    Raises:
        ModelError: the checkpoint lacks a pooler. Beside a prefix PEFT trains and stores only
            modules called ``classifier`` or ``score``.
    """
    if ready.loaded.task_head_modules:
        missing = ", ".join(ready.loaded.task_head_modules)
        reason = f"lacks {missing}, which stock PEFT does not train beside a prefix"
        raise ModelError(f"{ready.source.name} {reason}")
    config = PrefixTuningConfig(task_type=_CLASSIFIER, num_virtual_tokens=_VIRTUAL_TOKENS)
    return Adapted(get_peft_model(ready.loaded.model, config))


def ia3(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - as above
    """Train factors of keys, values and feed-forward inputs; PEFT knows the modules."""
    config = IA3Config(
        task_type=_task_type(ready.loaded.model), modules_to_save=head_modules(ready)
    )
    return Adapted(get_peft_model(ready.loaded.model, config))


def shira(ready: Prepared, settings: Hyperparameters) -> Rival:
    """Train as many single weights of query and value as LoRA has, drawn by the seed.

    PEFT draws the same places in every layer.
    """
    config = ShiraConfig(
        task_type=_task_type(ready.loaded.model),
        r=RANK,
        target_modules=list(QUERY_VALUE),
        random_seed=settings.seed,
        modules_to_save=head_modules(ready),
    )
    return Adapted(get_peft_model(ready.loaded.model, config))
