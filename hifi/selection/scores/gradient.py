"""Score ``gradient``: how strongly the loss depends on a head's weights (SPEFT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from hifi.backbones.heads import plain_projection, rows_by_head
from hifi.selection.scores.base import HeadScore

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import Backbone, Projection
    from hifi.selection.paper_numbers import PaperNumbers


class Gradient(HeadScore):
    r"""Σ over the calibration batches of ‖∂L/∂W_h‖², with one backward pass for each batch.

    W_h are the query, key and value rows of head h (of all heads of a key-value group) without
    their biases: a key's bias has no gradient in most models, and some projections have no bias. L
    is the mean loss of the batch, with the model's task head as it is. Nothing is updated. It is
    one loss for all layers, so they can be compared as they are.

    A gradient is dropped as soon as its norms are added: one projection's exists at a time.

    Source: Liu et al., "SPEFT", ACL 2025 (arXiv 2412.13488): a static mask by gradients.
    """

    def __init__(self, model: PreTrainedModel, *, backbone: Backbone, seed: int) -> None:
        super().__init__(model, backbone=backbone, seed=seed)
        shape = (backbone.num_layers, backbone.num_heads)
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._weights: dict[Tensor, list[tuple[int, Projection]]] = {}
        for layer in backbone.layers:
            for projection in layer.projections:  # fused ones share a weight
                weight = plain_projection(model, projection).weight
                self._weights.setdefault(weight, []).append((layer.index, projection))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let gradients reach the projections' weights alone, and restore the model at the end."""
        before = [(each, each.requires_grad, each.grad) for each in self._model.parameters()]
        with ExitStack() as hooks:
            try:
                for parameter, _, _ in before:
                    parameter.requires_grad_(parameter in self._weights)
                    parameter.grad = None
                for weight in self._weights:
                    hook = weight.register_post_accumulate_grad_hook(self._add)
                    hooks.callback(hook.remove)
                yield
            finally:
                for parameter, flag, gradient in before:
                    parameter.requires_grad_(flag)
                    parameter.grad = gradient

    def _add(self, weight: Tensor) -> None:
        """Add the squared norms of a weight's gradient and drop it; called in the backward pass."""
        gradient, weight.grad = weight.grad, None
        if gradient is not None:
            self._sums += self._squared_norms({weight: gradient})

    def _squared_norms(self, tensors: Mapping[Tensor, Tensor]) -> Tensor:
        """Return Σ of squares over each head's rows, float64 ``[L, H]``.

        Args:
            tensors: weights, and for each a tensor of its shape.
        """
        sums = torch.zeros_like(self._sums)
        for weight, tensor in tensors.items():
            for layer, projection in self._weights[weight]:
                rows = rows_by_head(tensor, projection, num_heads=self._backbone.num_heads)
                norms = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64)
                sums[layer] += norms.square().cpu()
        return sums

    def values(self, paper: PaperNumbers) -> Tensor:  # noqa: ARG002 - sees the gradients itself
        """Return the sums."""
        return self._sums
