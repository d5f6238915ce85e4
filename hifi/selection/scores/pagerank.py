"""Score ``pagerank``: the paper's importance p* (Alg. 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.selection.scores.base import HeadScore

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.selection.paper_numbers import PaperNumbers


class PageRank(HeadScore):
    r"""p* of Eq. (10), which sums to 1 in every layer.

    So that layers can compete for a budget, each layer's p* is multiplied by Σ_h I_h, the
    information of its heads together:  p*_h · Σ_h' I_h'.  That undoes the division of Eq. (8),
    p⁽⁰⁾ = I/ΣI, where the scale of the layer is lost; the walk itself moves shares within a layer
    and keeps their sum. At d = 0, p* = p⁽⁰⁾ and the result is I_h, which is the same unit in every
    layer: singular directions. The order within a layer stays that of p*.
    """

    def values(self, paper: PaperNumbers) -> Tensor:
        """Return p*."""
        return paper.importance

    def comparable_values(self, paper: PaperNumbers) -> Tensor:
        """Return p*_h · Σ_h' I_h', in singular directions."""
        return paper.importance * paper.information.sum(1, keepdim=True)
