"""Export a head delta as an adapter that stock PEFT loads; writing it does not need PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers.models.auto import modeling_auto

from hifi.backbones.heads import AttentionLayer, describe
from hifi.canonical import canonical_json
from hifi.deltas.placement import read_matching_task_head
from hifi.deltas.row_names import heads_of_rows, row_key
from hifi.errors import TaskHeadMismatchError
from hifi.files import write_directory_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.backbones.heads import HeadId
    from hifi.deltas.metadata import DeltaMetadata

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

_PEFT_PREFIX = "base_model.model."
# Tasks for which PEFT has a model class; other tasks must not name a task type.
_TASK_TYPES = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


@dataclass(frozen=True, eq=False)
class _Update:
    """The change to one module: ``weight`` and ``bias`` are added to the rows ``index``.

    For m changed rows of R: ``index`` [m], ``weight`` [m, D], ``bias`` [m] or None.
    """

    module_name: str
    num_rows: int
    index: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def rank(self) -> int:
        return len(self.index)

    def tensors(self) -> dict[str, Tensor]:
        """Return PEFT's A [m, D], B [R, m] and, on B, the bias [R]."""
        selector = torch.zeros(self.num_rows, self.rank)
        selector[self.index, torch.arange(self.rank)] = 1
        tensors = {"lora_A.weight": self.weight.contiguous(), "lora_B.weight": selector}
        if self.bias is not None:
            tensors["lora_B.bias"] = torch.zeros(self.num_rows).index_copy(0, self.index, self.bias)
        return {f"{_PEFT_PREFIX}{self.module_name}.{name}": t for name, t in tensors.items()}


def export_lora(
    directory: str | Path,
    *,
    model: PreTrainedModel,
    rows: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    task_head: Mapping[str, Tensor],
    metadata: DeltaMetadata,
) -> None:
    """Write tuned rows as a LoRA adapter in PEFT's layout, atomically.

    A change to m rows of a projection is exactly B·A of rank m: A = W'−W is those rows [m, D], and
    B is a selector [R, m] of zeros and ones. So the export is exact; alpha = rank scales by 1.

    Args:
        directory: a folder that does not exist yet, or is empty.
        model: the backbone with a task head like the delta's; only names, shapes and types count.
        rows: W', by row name.
        base: W, by row name.
        task_head: parameter name to tensor; becomes PEFT's ``modules_to_save``.
        metadata: has the backbone's name and revision.

    Raises:
        TaskHeadMismatchError: the model lacks the task head, or the task head contains parameters
            of the backbone or parts of modules.
        StorageError: the folder exists and is not empty, or cannot be written.

    Source: PEFT's checkpoint format, huggingface.co/docs/peft/developer_guides/checkpoint.
    """
    read_matching_task_head(model, task_head)
    changes = {name: (row.double() - base[name].double()).float() for name, row in rows.items()}
    updates = list(_updates(model, changes))
    tensors = {name: tensor for update in updates for name, tensor in update.tensors().items()}
    for name, tensor in task_head.items():
        tensors[_PEFT_PREFIX + name] = tensor.to(torch.float32, copy=True).contiguous()
    config = _config(model, updates, task_head=task_head, metadata=metadata)
    with write_directory_atomically(directory) as folder:
        (folder / WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
        (folder / CONFIG_FILE).write_bytes(canonical_json(config))


def _updates(model: PreTrainedModel, changes: Mapping[str, Tensor]) -> Iterator[_Update]:
    for layer in describe(model).layers:
        heads = [head for head in heads_of_rows(changes) if head.layer == layer.index]
        if heads:
            for module_name in layer.module_names:
                yield _update(model, layer, module_name, heads=heads, changes=changes)


def _update(
    model: PreTrainedModel,
    layer: AttentionLayer,
    module_name: str,
    *,
    heads: Sequence[HeadId],
    changes: Mapping[str, Tensor],
) -> _Update:
    """Collect the rows of all heads in one module; fused projections share a module."""
    index, weights, biases = [], [], []
    for projection in layer.projections:
        if projection.module_name != module_name:
            continue
        for head in heads:
            place = projection.rows(head.head)
            index.append(torch.arange(place.start, place.stop))
            weights.append(changes[row_key(head, projection.name, "weight")])
            bias = changes.get(row_key(head, projection.name, "bias"))
            if bias is not None:
                biases.append(bias)
    weight = model.get_parameter(f"{module_name}.weight")
    return _Update(
        module_name=module_name,
        num_rows=weight.shape[1 if layer.projections[0].transposed else 0],
        index=torch.cat(index),
        weight=torch.cat(weights),
        bias=torch.cat(biases) if biases else None,
    )


def _config(
    model: PreTrainedModel,
    updates: list[_Update],
    *,
    task_head: Mapping[str, Tensor],
    metadata: DeltaMetadata,
) -> dict[str, Any]:
    """Return the adapter's configuration, with PEFT's names for its fields."""
    ranks = {update.module_name: update.rank for update in updates}
    return {
        "peft_type": "LORA",
        "task_type": _task_type(model) if task_head else None,
        "base_model_name_or_path": metadata.model,
        "revision": metadata.revision,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        # PEFT treats these names as patterns: they must be complete, so that layer 1 is not 11.
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": any(update.bias is not None for update in updates),
        "fan_in_fan_out": describe(model).layers[0].projections[0].transposed,
        "modules_to_save": _whole_modules(model, frozenset(task_head)) or None,
    }


def _task_type(model: PreTrainedModel) -> str | None:
    name = type(model).__name__
    return next((each for each, kinds in _TASK_TYPES.items() if name in kinds.values()), None)


def _whole_modules(model: PreTrainedModel, names: frozenset[str]) -> list[str]:
    """Return the names of the largest modules that have exactly these parameters."""
    modules: list[str] = []
    left = set(names)
    for prefix, module in model.named_modules():
        inside = {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        if prefix and inside and inside <= left:
            modules.append(prefix)
            left -= inside
    if left:
        raise TaskHeadMismatchError(
            f"the task head's {', '.join(sorted(left))} are part of a module that also has "
            "parameters outside the task head: PEFT saves whole modules only"
        )
    return modules
