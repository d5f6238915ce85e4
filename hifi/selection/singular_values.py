"""How the singular values of head outputs add up: what information richness counts, as a curve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hifi.backbones.heads import describe
from hifi.errors import CaptureError, InvalidArgumentError
from hifi.selection.capture import capture_head_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cumulative_singular_values(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]
) -> Tensor:
    r"""Compute the share of the leading singular values in the sum of all, for every head.

    The mean over the samples of  (σ_1 + … + σ_t) / (σ_1 + … + σ_T),  the left side of Eq. (2), for
    each t. Where a sample's curve reaches ξ is its I_h.

    Args:
        model: a transformers model, as in ``select_heads``; unchanged afterwards.
        batches: as in ``select_heads``; labels are ignored.

    Returns:
        float64 ``[L, H·G, D']``, ascending in t = 1 … D' up to 1: H·G counts query heads, also if
        keys are grouped. The curve of an O_h that is 0 is 1 everywhere, as its I_h is 1.

    Raises:
        InvalidArgumentError: no batch, or one that cannot be scored.
        UnsupportedArchitectureError: the model's heads cannot be located.
        CaptureError: a forward pass does not run every layer once, or a head output is not finite.
    """
    layers = describe(model).num_layers
    sums: list[Tensor | None] = [None] * layers

    def see(layer: int, head_output: Tensor, real: Tensor) -> None:
        outputs = head_output.transpose(1, 2).double()  # [B, H·G, S, D']
        outputs = outputs.masked_fill(~real[:, None, :, None], 0)  # adds singular values of 0
        if not bool(outputs.isfinite().all()):
            raise CaptureError(f"layer {layer}: a head output is infinite or not a number")
        shares = _shares(torch.linalg.svdvals(outputs), width=outputs.shape[-1]).sum(0).cpu()
        known = sums[layer]
        sums[layer] = shares if known is None else known + shares

    samples = 0
    with capture_head_outputs(model, on_head_output=see) as run:
        for batch in batches:
            samples += run(batch)
    seen = [each for each in sums if each is not None]
    if not seen:
        raise InvalidArgumentError("batches", value="none", limit="at least one batch")
    return torch.stack(seen) / samples


def _shares(singular: Tensor, *, width: int) -> Tensor:
    """Return the cumulative shares ``[..., D']`` of singular values ``[..., M]``, descending."""
    padded = torch.nn.functional.pad(singular, (0, width - singular.shape[-1]))
    running = padded.cumsum(-1)
    whole = running[..., -1:]
    return torch.where(whole > 0, running / torch.where(whole > 0, whole, 1), 1)
