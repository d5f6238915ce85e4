"""Relative positions in a mixed batch: projected for each sample with its own task's rows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import RelativePositions


class SamplePositions:
    """Lets the samples of a batch have different projections of the same relative positions.

    transformers projects the position embeddings ``[1, P, D]`` once and repeats the result for
    every sample. Here its own code runs as if the batch were one sample of B·H heads, which is the
    same computation: scores are products per head. The projections of all samples then lie side by
    side, ``[1, P, B·R]``, and nothing is repeated.

    Legend: B samples, H heads, P positions, R outputs of a projection.

    Args:
        model: the bare backbone.
        positions: of one of its layers.
        on_end: called after a batch's positions are computed.

    Attributes:
        samples: B while the positions are projected; 0 otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        positions: RelativePositions,
        *,
        on_end: Callable[[], None],
    ) -> None:
        self.samples = 0
        self._attention: Any = model.get_submodule(positions.attention)
        self._method = positions.method
        self._on_end = on_end

    def start(self) -> None:
        """Start projecting positions for each sample."""
        vars(self._attention)[self._method] = self._compute

    def stop(self) -> None:
        """Let the layer project positions for all samples at once again."""
        vars(self._attention).pop(self._method, None)

    def widen(self, projected: Tensor) -> Tensor:
        """Copy a projection of the positions ``[1, P, R]`` for every sample.

        Returns:
            ``[B, P, R]``, a view of a new tensor in which the samples lie side by side.
        """
        return projected[0].unsqueeze(1).repeat(1, self.samples, 1).transpose(0, 1)

    @staticmethod
    def side_by_side(projected: Tensor) -> Tensor:
        """Return what :meth:`widen` returned as ``[1, P, B·R]``, without a copy."""
        return projected.transpose(0, 1).flatten(1).unsqueeze(0)

    def _compute(self, query: Tensor, *arguments: object, **more: object) -> Tensor:
        """Replace the method of the self-attention; ``query`` is ``[B·H, S, D']``."""
        attention = self._attention
        wide = copy.copy(attention)  # it shares the projections
        wide.num_attention_heads = len(query)
        self.samples = len(query) // attention.num_attention_heads
        try:
            scores: Tensor = getattr(type(attention), self._method)(wide, query, *arguments, **more)
        finally:
            self.samples = 0
            self._on_end()
        return scores
