"""The paper's numbers: information I, correlation r and importance p*, summed over a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.errors import CaptureError
from hifi.selection.correlation import head_correlation
from hifi.selection.pagerank import PageRankResult, pagerank
from hifi.selection.richness import RichnessSums, scaled

if TYPE_CHECKING:
    from hifi.backbones.heads import Backbone
    from hifi.data.settings import Scoring


@dataclass(frozen=True, eq=False, kw_only=True)
class PaperNumbers:
    """The paper's numbers of a model's L·H heads; H counts groups if keys are grouped.

    Attributes:
        information: I, float64 ``[L, H]`` (Eq. 3).
        correlation: r, float64 ``[L, H, H]`` (Eq. 7).
        ranks: p* and the number of steps, per layer (Eq. 10).
    """

    information: Tensor
    correlation: Tensor
    ranks: tuple[PageRankResult, ...]

    @property
    def importance(self) -> Tensor:
        """p*, float64 ``[L, H]``; each row sums to 1."""
        return torch.stack([rank.importance for rank in self.ranks])


class PaperSums:
    """Sums over the samples seen so far; nothing else of them is kept.

    Legend: B samples, S tokens, H·G query heads in H groups, D' head width.
    """

    def __init__(self, backbone: Backbone, *, scoring: Scoring) -> None:
        layers, heads = backbone.num_layers, backbone.num_query_heads
        self._shape = (layers, backbone.num_heads, backbone.group_size)
        self._scoring = scoring
        self._richness = RichnessSums((layers, heads), xi=scoring.share)
        self._correlation = torch.zeros(layers, heads, heads, dtype=torch.float64)

    def add(self, layer: int, head_output: Tensor, real: Tensor) -> None:
        """Add a layer of a batch: O_h ``[B, S, H·G, D']`` and bool ``[B, S]``, True at real tokens.

        Raises:
            CaptureError: a head output at a real token is not finite.
        """
        outputs = head_output.transpose(1, 2).to(  # [B, H·G, S, D']
            torch.float64, copy=True, memory_format=torch.contiguous_format
        )
        outputs.masked_fill_(~real[:, None, :, None], 0)
        tokens = real.sum(1)
        means = outputs.sum(2) / tokens[:, None, None]  # [B, H·G, D']
        if not bool(means.isfinite().all()):
            raise CaptureError(f"layer {layer}: a head output is infinite or not a number")
        self._correlation[layer] += head_correlation(means).sum(0).cpu()
        if head_output.dtype == torch.float64:  # squares of narrower types always fit float64
            outputs = scaled(outputs)
        self._richness.add(layer, outputs, tokens=tokens)

    def settle(self) -> None:
        """Finish a batch."""
        self._richness.settle()

    def numbers(self, *, samples: int) -> PaperNumbers:
        """Return the numbers over ``samples`` samples; groups average over (pairs of) heads.

        Raises:
            ConvergenceError: PageRank does not converge.
        """
        layers, heads, size = self._shape
        counts = self._richness.counts.view(layers, heads, size).sum(2)
        pairs = self._correlation.view(layers, heads, size, heads, size).sum((2, 4))
        information = counts.double() / (samples * size)
        correlation = pairs / (samples * size**2)
        correlation.diagonal(dim1=1, dim2=2).zero_()
        ranks = tuple(
            pagerank(
                edges,
                information=richness,
                damping=self._scoring.damping,
                teleport=self._scoring.teleport,
            )
            for edges, richness in zip(correlation, information, strict=True)
        )
        return PaperNumbers(information=information, correlation=correlation, ranks=ranks)
