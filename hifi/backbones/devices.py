"""Choose the device, the backbone's dtype and the attention function for a model.

A backbone is stored in float32, bfloat16 or float16, and never computed in float16, whose range
ends at 65504: activations of models that were trained in another dtype may exceed it, and gradients
vanish without loss scaling. It is computed in

- what ``precision`` says, for training and scoring: ``auto`` is bfloat16 if the device multiplies
  it natively, else float32; a run's gradient scores are computed in float32 anyway;
- the stored dtype, for predictions, if that is float32; else what ``auto`` is.

float32 holds float16 and bfloat16 exactly; bfloat16 rounds float16 from 11 bits to 8. Head deltas
can be merged into a backbone in any of the three; a merged model is written in the stored dtype
unless another is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch

from hifi.data.settings import Hyperparameters, Precision, declared
from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EAGER_LENGTH = 128


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device for ``auto`` or a torch device name.

    Raises:
        InvalidArgumentError: torch does not know the device, or this machine does not have it.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    allowed = "auto, cpu" + (", cuda, cuda:N" if has_cuda else " (torch sees no CUDA device)")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError("device", value=device, limit=allowed) from error
    count = torch.cuda.device_count() if has_cuda else 0
    if resolved.type == "cpu" or (resolved.type == "cuda" and (resolved.index or 0) < count):
        return resolved
    raise InvalidArgumentError("device", value=device, limit=allowed)


def resolve_dtype(precision: Precision, *, device: torch.device) -> torch.dtype:
    """Return the dtype of the frozen backbone.

    Args:
        precision: ``auto`` is bfloat16 if the device multiplies it natively, else float32.
        device: where the model runs.

    Raises:
        InvalidArgumentError: an unknown precision.
    """
    precision = declared(Hyperparameters)["precision"].check(precision)
    if precision == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def serving_dtype(stored: torch.dtype, *, device: torch.device) -> torch.dtype:
    """Return the dtype in which a backbone computes predictions.

    Args:
        stored: the dtype of its weights on disk.
        device: where the model runs.
    """
    if stored in (torch.float16, torch.bfloat16):
        return resolve_dtype("auto", device=device)
    return stored


@contextmanager
def computed_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Compute a bfloat16 or float16 model in float32 during a block, with the values that it has.

    It needs the memory of a float32 copy. At the end the model has its own tensors again. No
    parameter may have a gradient.
    """
    narrow = (torch.bfloat16, torch.float16)
    tensors = [each for each in chain(model.parameters(), model.buffers()) if each.dtype in narrow]
    own = [each.data for each in tensors]
    try:
        for each in tensors:
            each.data = each.data.float()
        yield
    finally:
        for each, data in zip(tensors, own, strict=True):
            each.data = data


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions oneDNN computes bfloat16 in float32, more slowly than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_attention(*, device: torch.device, dtype: torch.dtype, max_length: int) -> str:
    """Return the faster attention function for training on up to ``max_length`` tokens.

    On a CPU in bfloat16 the backward pass of the fused function took 40 % of a training step; plain
    matmul-softmax-matmul was faster up to 128 tokens. In float32 the fused function is faster.
    """
    is_plain = device.type == "cpu" and dtype == torch.bfloat16 and max_length <= _EAGER_LENGTH
    return "eager" if is_plain else "sdpa"
