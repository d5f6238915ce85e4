"""Fingerprints: hashes that identify a whole backbone, or the rows of some of its heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hifi.backbones.heads import Backbone, describe, optional_parameter_names, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PREFIX = "sha256:"

# Configurations have several names for the same setting; only the value is hashed.
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation", "activation_function")
_NORM_EPS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps")
# The fields that the formulas of rotary positions read.
_ROPE = (
    "rope_type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "original_max_position_embeddings",
)


def backbone_fingerprint(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> str:
    """Hash every weight of a model's backbone, at the dtype in which they are loaded.

    The hash is SHA-256 over, in this order: the architecture, its sizes and the other settings
    that shape the forward pass (activation, the norms' ε, rotary positions, windows); the query,
    key and value rows of every head in (layer, head, projection) order, as ``nn.Linear`` counts
    rows; for each layer the sorted hashes of its other parameters; the sorted hashes of the
    parameters outside the layers. Parameter names are not hashed, since they differ between memory
    and disk and between versions of transformers.

    The hash excludes the task head and the parameters of the base model that some classes lack (a
    pooler). A checkpoint therefore has the same fingerprint with any task head or none.

    Args:
        model: a transformers model. Weights are hashed as they are: a model that is loaded in
            another dtype, tuned, or merged with a delta has another fingerprint.
        dtype: hash the weights as if the model had been loaded in this dtype.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.

    Raises:
        UnsupportedArchitectureError: the architecture is not supported.
    """
    backbone = describe(model)
    total = hashlib.sha256()
    total.update(_facts(backbone, model.config))
    for digest in _head_digests(model, backbone, dtype=dtype):
        total.update(digest)
    for group in _other_parameters(model, backbone):
        total.update(b"group")
        for digest in sorted(_digest(each.detach(), dtype=dtype) for each in group):
            total.update(digest)
    return PREFIX + total.hexdigest()


def is_exact_in(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Return whether a narrower dtype holds every weight of a model's backbone exactly.

    Such a model may have been stored in that dtype and loaded in a wider one.
    """
    backbone = describe(model)
    others = (each for group in _other_parameters(model, backbone) for each in group)
    return all(torch.equal(each.to(dtype).to(each.dtype), each) for each in others) and all(
        torch.equal(part.to(dtype).to(part.dtype), part)
        for layer in backbone.layers
        for name in layer.module_names
        for part in model.get_submodule(name).parameters()
    )


def rows_fingerprint(rows: Mapping[str, Tensor]) -> str:
    """Hash the rows of some heads, rounded to bfloat16.

    Due to the rounding, a backbone has the same hash in float32 and in bfloat16. Changes smaller
    than a step of bfloat16 (0.4 to 0.8 % of a value) do not change the hash.

    Args:
        rows: any floating dtype, by a head delta's tensor names, which are hashed too.

    Returns:
        ``sha256:`` and 64 hexadecimal digits; the order of ``rows`` does not matter.
    """
    total = hashlib.sha256()
    for name in sorted(rows):
        total.update(name.encode("utf-8") + b"\0")
        total.update(_digest(rows[name].detach(), dtype=torch.bfloat16))
    return PREFIX + total.hexdigest()


def _facts(backbone: Backbone, config: PreTrainedConfig) -> bytes:
    facts = {
        "architecture": backbone.architecture,
        "num_layers": backbone.num_layers,
        "num_heads": backbone.num_heads,
        "group_size": backbone.group_size,
        "head_dim": backbone.head_dim,
        "hidden_size": backbone.hidden_size,
        "activation": _first(config, _ACTIVATIONS),
        "norm_eps": _first(config, _NORM_EPS),
        "rope": _rope(getattr(config, "rope_parameters", None)),
        "windows": _windows(config),
    }
    return json.dumps(facts, sort_keys=True).encode("utf-8")


def _first(config: PreTrainedConfig, names: Iterable[str]) -> str | None:
    """Return the first of these fields that exists, with numbers in one spelling."""
    value = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return None if value is None else _normalised(value)


def _normalised(value: object) -> str:
    """Format a value as text, with 10000 and 10000.0 as the same number."""
    if isinstance(value, (int, float)):
        return repr(float(value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)


def _rope(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the rotary positions' base and scaling, per layer type where layers differ.

    Values at their default are left out, whether or not the configuration contains them.
    """
    return {
        name: _rope(value) if isinstance(value, Mapping) else _normalised(value)
        for name, value in (parameters or {}).items()
        if isinstance(value, Mapping) or (name in _ROPE and value not in (None, "default"))
    }


def _windows(config: PreTrainedConfig) -> list[str]:
    """Return each layer's attention span if any layer has a window, else an empty list."""
    types = getattr(config, "layer_types", None) or ()
    if all(kind == "full_attention" for kind in types):
        return []
    return [str(getattr(config, "sliding_window", None)), *types]


def _head_digests(
    model: nn.Module, backbone: Backbone, *, dtype: torch.dtype | None
) -> Iterable[bytes]:
    for layer in backbone.layers:
        for head in range(backbone.num_heads):
            for projection in layer.projections:
                weight, bias = read_rows(model, projection, head)
                yield _digest(weight, dtype=dtype)
                yield b"no bias" if bias is None else _digest(bias, dtype=dtype)


def _other_parameters(model: PreTrainedModel, backbone: Backbone) -> list[list[nn.Parameter]]:
    """Group the parameters that are not head rows by layer; the last group is outside layers."""
    skipped = {id(model.get_parameter(name)) for name in optional_parameter_names(model)}
    for layer in backbone.layers:
        for name in layer.module_names:
            skipped.update(id(parameter) for parameter in model.get_submodule(name).parameters())
    groups = []
    for block in [*_blocks(model, backbone), model.base_model]:
        group = [parameter for parameter in block.parameters() if id(parameter) not in skipped]
        skipped.update(id(parameter) for parameter in group)
        groups.append(group)
    return groups


def _blocks(model: PreTrainedModel, backbone: Backbone) -> list[nn.Module]:
    """Return the layers: the ModuleList whose i-th entry holds the projections of layer i."""
    inner = [model.get_submodule(layer.module_names[0]) for layer in backbone.layers]
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(inner):
            blocks = list(module)
            pairs = zip(blocks, inner, strict=True)
            if all(any(part is wanted for part in block.modules()) for block, wanted in pairs):
                return blocks
    raise AssertionError("describe() found the layers in a ModuleList")


def _digest(tensor: Tensor, *, dtype: torch.dtype | None = None) -> bytes:
    """Hash dtype, shape and little-endian bytes of a tensor, or of the tensor cast to ``dtype``."""
    data = tensor.to(dtype=dtype or tensor.dtype).cpu().contiguous()
    name = str(data.dtype).removeprefix("torch.")
    digest = hashlib.sha256(f"{name}{list(data.shape)}".encode("ascii"))
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
