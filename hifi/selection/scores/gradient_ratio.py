"""Score ``gradient-ratio``: the gradient's norm relative to that of the weights (GEM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hifi.selection.scores.gradient import Gradient

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.selection.paper_numbers import PaperNumbers


class GradientRatio(Gradient):
    r"""Σ over the calibration batches of ‖∂L/∂W_h‖² / ‖W_h‖².

    The rows, the loss and the comparison of layers are those of :class:`Gradient`. A head whose
    weights are all zero has the score 0.

    Source: "GEM", arXiv 2508.16191.
    """

    def values(self, paper: PaperNumbers) -> Tensor:
        """Return the ratios."""
        weights = self._squared_norms({weight: weight.detach() for weight in self._weights})
        is_zero = weights == 0
        return torch.where(is_zero, 0, super().values(paper) / torch.where(is_zero, 1, weights))
