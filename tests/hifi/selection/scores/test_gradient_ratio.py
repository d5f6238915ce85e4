"""hifi.selection.scores.gradient_ratio: the gradient's squares over those of the weights."""

from __future__ import annotations

import pytest
import torch

from hifi.selection.scoring import select_heads
from tests.architectures import LAYERS, heads_per_layer, tiny_model
from tests.hifi.selection.scores.slices import attention, head_weights
from tests.hifi.selection.scores.test_gradient import autograd_values, gradient_values, two_batches


class TestValues:
    @pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama", "vit", "deberta-v3"])
    def test_are_relative_to_the_weights(self, name):
        model, batches = tiny_model(name, dtype=torch.float64), two_batches(name)
        weights = torch.zeros(LAYERS, heads_per_layer(name), dtype=torch.float64)
        for layer, head, parts in head_weights(model, name):
            weights[layer, head] = sum(part.square().sum() for part in parts)
        expected = autograd_values(model, name, batches) / weights
        values = gradient_values(model, batches, score="gradient-ratio")
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)

    def test_of_a_head_without_weights_is_zero(self):
        model = tiny_model("bert")
        for module in attention(model, "bert", 1)[0]:
            module.weight.data[8:16] = 0
        selection = select_heads(model, two_batches("bert"), k=1, score="gradient-ratio")
        assert selection.layers[1].values[1] == 0
        assert (selection.layers[1].values > 0).sum() == 3
