"""Score ``output-norm``: how much a head writes into the residual stream (LoRA-drop)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hifi.backbones.heads import output_blocks
from hifi.selection.scores.base import HeadScore

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import Backbone
    from hifi.selection.paper_numbers import PaperNumbers


class OutputNorm(HeadScore):
    r"""The mean of ‖O_h W^O_h‖₂ over the real tokens of all samples.

    W^O_h is the part of the output projection that reads head h, without the bias, which the heads
    share. A key-value group has the mean of its heads. All layers write into the same residual
    stream, so they can be compared as they are.

    Source: Zhou et al., "LoRA-drop", arXiv 2402.07721.
    """

    def __init__(self, model: PreTrainedModel, *, backbone: Backbone, seed: int) -> None:
        super().__init__(model, backbone=backbone, seed=seed)
        shape = (backbone.num_layers, backbone.num_query_heads)
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._tokens = 0
        # ‖oW‖² = o(WWᵀ)oᵀ: a product of D'×D' for each token, not of D'×D.
        self._squares = []
        for layer in backbone.layers:
            blocks = output_blocks(model, layer, num_query_heads=backbone.num_query_heads).double()
            self._squares.append(blocks @ blocks.mT)  # [H·G, D', D']

    def see(self, layer: int, head_output: Tensor, real: Tensor) -> None:
        """Add the norms of a layer of a batch."""
        outputs = head_output[real].double().transpose(0, 1)  # [H·G, tokens, D']
        squares = ((outputs @ self._squares[layer]) * outputs).sum(2)
        self._sums[layer] += squares.clamp(min=0).sqrt().sum(1).cpu()
        self._tokens += outputs.shape[1] if layer == 0 else 0

    def values(self, paper: PaperNumbers) -> Tensor:  # noqa: ARG002 - sees the outputs itself
        """Return the mean norms."""
        groups = self._sums.view(len(self._sums), self._backbone.num_heads, -1)
        return groups.mean(2) / self._tokens
