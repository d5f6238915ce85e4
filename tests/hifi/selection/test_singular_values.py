"""hifi.selection.singular_values: curves of head outputs, against one SVD for each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hifi.errors import CaptureError, InvalidArgumentError, UnsupportedArchitectureError
from hifi.selection.capture import capture_head_outputs
from hifi.selection.scoring import select_heads
from hifi.selection.singular_values import cumulative_singular_values
from tests.architectures import LAYERS, QUERY_HEADS, tiny_batch, tiny_model, unsupported_model

WIDTH = 8  # D' of the tiny models


def naive_curves(model, batch):
    """Return the mean curve of every head, from one SVD for each sample and head."""
    seen = {}

    def see(layer, head_output, real):
        for sample, tokens in zip(head_output, real, strict=True):
            for head in range(QUERY_HEADS):
                output = sample[tokens][:, head].double().numpy()
                values = np.linalg.svd(output, compute_uv=False)
                curve = np.ones(WIDTH)
                curve[: len(values)] = values.cumsum() / values.sum()
                seen.setdefault((layer, head), []).append(curve)

    with capture_head_outputs(model, on_head_output=see) as run:
        run(batch)
    return {place: np.mean(curves, axis=0) for place, curves in seen.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
class TestCurves:
    def test_are_the_shares_of_the_leading_singular_values(self, name):
        model, batch = tiny_model(name), tiny_batch(name)
        curves = cumulative_singular_values(model, [batch])
        assert curves.shape == (LAYERS, QUERY_HEADS, WIDTH)
        assert curves.dtype == torch.float64
        for (layer, head), expected in naive_curves(model, batch).items():
            assert curves[layer, head].numpy() == pytest.approx(expected, abs=1e-9)


class TestSamples:
    def test_are_weighted_equally_in_whatever_batches(self):
        model, batch = tiny_model("bert").double(), tiny_batch("bert")
        samples = len(batch["input_ids"])
        one_by_one = [
            {key: rows[place : place + 1] for key, rows in batch.items()}
            for place in range(samples)
        ]
        whole = cumulative_singular_values(model, [batch])
        assert torch.allclose(cumulative_singular_values(model, one_by_one), whole, atol=1e-12)

    def test_of_one_cross_the_share_at_its_richness(self):
        model, batch = tiny_model("bert"), tiny_batch("bert")
        sample = {key: rows[:1] for key, rows in batch.items()}
        curves = cumulative_singular_values(model, [sample])
        selection = select_heads(model, [sample], k=1, xi=0.9)
        richness = torch.stack([layer.information_richness for layer in selection.layers])
        assert torch.equal(1 + (curves < 0.9).sum(-1), richness.long())

    def test_leave_the_model_as_it_was(self):
        model = tiny_model("bert").train()
        cumulative_singular_values(model, [tiny_batch("bert")])
        assert model.training
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_of_a_head_that_is_zero_are_one(self):
        model = tiny_model("bert")
        value = model.base_model.encoder.layer[1].attention.self.value
        with torch.no_grad():
            value.weight[:WIDTH] = 0
            value.bias[:WIDTH] = 0
        curves = cumulative_singular_values(model, [tiny_batch("bert")])
        assert torch.equal(curves[1, 0], torch.ones(WIDTH, dtype=torch.float64))
        assert curves[1, 1, 0] < 1


class TestRefusals:
    def test_needs_a_batch(self):
        with pytest.raises(InvalidArgumentError, match="at least one batch"):
            cumulative_singular_values(tiny_model("bert"), [])

    def test_names_the_layer_of_a_number_that_is_not_finite(self):
        model = tiny_model("bert")
        with torch.no_grad():
            model.base_model.encoder.layer[1].attention.self.value.bias[0] = torch.nan
        with pytest.raises(CaptureError, match="layer 1: a head output is infinite or not"):
            cumulative_singular_values(model, [tiny_batch("bert")])

    def test_refuses_a_model_whose_heads_are_not_known(self):
        with pytest.raises(UnsupportedArchitectureError):
            cumulative_singular_values(unsupported_model(), [])
