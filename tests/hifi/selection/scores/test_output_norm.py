"""hifi.selection.scores.output_norm: what each head writes, head by head and token by token."""

from __future__ import annotations

import pytest
import torch

from hifi.errors import CaptureError
from hifi.selection.capture import capture_head_outputs
from hifi.selection.scoring import select_heads
from tests.architectures import (
    ARCHITECTURES,
    LAYERS,
    NAMES,
    QUERY_HEADS,
    heads_per_layer,
    tiny_batch,
    tiny_model,
)
from tests.hifi.selection.scores.slices import WIDTH, attention

TEXT = tuple(name for name in NAMES if not ARCHITECTURES[name].image)


def norms(model, batches):
    """Return the scores of every head, ``[L, H]``."""
    selection = select_heads(model, batches, k=1, score="output-norm")
    return torch.stack([layer.values for layer in selection.layers])


def naive_norms(model, name, batches):
    """Multiply each head's output of each real token by its part of W^O, and average the norms."""
    found = [[[] for _ in range(QUERY_HEADS)] for _ in range(LAYERS)]

    def see(layer, head_output, real):
        weight = attention(model, name, layer)[1].weight.detach()
        for sample, mask in zip(head_output, real, strict=True):
            for head in range(QUERY_HEADS):
                columns = slice(head * WIDTH, (head + 1) * WIDTH)
                part = weight[columns] if name == "gpt2" else weight[:, columns].T
                found[layer][head] += [float((o @ part).norm()) for o in sample[mask][:, head]]

    with capture_head_outputs(model, on_head_output=see) as run:
        for batch in batches:
            run(batch)
    means = torch.tensor(found, dtype=torch.float64).mean(2)  # [L, query heads]
    return means.view(LAYERS, heads_per_layer(name), -1).mean(2)


class TestValues:
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_the_naive_ones(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batches = [
            tiny_batch(name, dtype=torch.float64),
            tiny_batch(name, seed=1, lengths=(4, 14, 2), dtype=torch.float64),
        ]
        values = norms(model, batches)
        torch.testing.assert_close(values, naive_norms(model, name, batches), rtol=1e-9, atol=0)
        assert values.std() > 0

    @pytest.mark.parametrize("name", TEXT)
    def test_do_not_depend_on_padding_or_batches(self, name):
        model, batch = tiny_model(name, dtype=torch.float64), tiny_batch(name)
        wide = {key: torch.nn.functional.pad(value, (0, 9)) for key, value in batch.items()}
        alone = [
            {"input_ids": ids[None, mask.bool()]}
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        expected = norms(model, [batch])
        for others in ([wide], alone, alone[::-1]):
            torch.testing.assert_close(norms(model, others), expected, rtol=1e-9, atol=0)

    def test_scale_with_the_output_projection(self):
        model, batch = tiny_model("bert", dtype=torch.float64), tiny_batch("bert")
        before = norms(model, [batch])[2]
        attention(model, "bert", 2)[1].weight.data[:, 8:16] *= 3
        after = norms(model, [batch])[2]
        torch.testing.assert_close(after, before * torch.tensor([1.0, 3, 1, 1]), rtol=1e-9, atol=0)

    def test_run_in_half_precision_too(self):
        model, batch = tiny_model("bert", dtype=torch.bfloat16), tiny_batch("bert")
        expected = naive_norms(tiny_model("bert"), "bert", [batch])
        torch.testing.assert_close(norms(model, [batch]), expected, rtol=0.05, atol=0)

    @pytest.mark.parametrize("strategy", ["layer-wise", "budget"])
    def test_that_are_not_finite_are_refused(self, strategy):
        model = tiny_model("bert")
        with torch.no_grad():  # of the last layer, whose output no head reads
            model.bert.encoder.layer[-1].attention.output.dense.weight[0, 0] = torch.inf
        size = {"budget": 2} if strategy == "budget" else {"k": 1}
        with pytest.raises(CaptureError, match="a head's output-norm is infinite"):
            select_heads(
                model, [tiny_batch("bert")], score="output-norm", strategy=strategy, **size
            )
