"""hifi.selection.scores.pagerank: the very heads of the paper's method, and its layers compared."""

from __future__ import annotations

import pytest
import torch

from hifi import finetune
from hifi.selection.scoring import select_heads
from tests.architectures import tiny_batch, tiny_model

SUBJECTS = ("The bank", "A river", "Our neighbour", "The old engine", "Her first novel")
VERBS = (
    *("raised its rates", "flooded the lower town"),
    *("plays the cello at night", "starts on the third try"),
)
ROWS = [
    {"text": f"{subject} {verb}.", "label": (i + j) % 2}
    for i, subject in enumerate(SUBJECTS)
    for j, verb in enumerate(VERBS)
]


class TestPaper:
    """What version 0.1 selected in the packaged backbone, before there were other scores."""

    @pytest.mark.parametrize(
        ("settings", "heads"),
        [
            (
                {},
                [(2, 4, 9), (3, 7, 8), (1, 3, 10), (9, 10, 11), (1, 4, 10), (8, 9, 10)],
            ),
            (
                {"preset": "paper"},
                [(2, 4, 9), (3, 7, 8), (1, 3, 10), (9, 10, 11), (1, 4, 10), (8, 9, 10)],
            ),
            (
                {"score": "pagerank", "k": 3, "strategy": "layer-wise", "xi": 0.9, "damping": 0.85},
                [(2, 4, 9), (3, 7, 8), (1, 3, 10), (9, 10, 11), (1, 4, 10), (8, 9, 10)],
            ),
            (
                {"strategy": "mid-top", "k": 2, "xi": 0.8},
                [(), (), (), (9, 11), (4, 10), (9, 10)],
            ),
        ],
    )
    def test_heads_of_the_packaged_backbone(self, settings, heads):
        result = finetune(
            model="all-MiniLM-L6-v2",
            train=ROWS,
            epochs=1,
            batch_size=8,
            precision="float32",
            device="cpu",
            **settings,
        )
        assert [result.selection.selected_in(layer) for layer in range(6)] == heads
        recorded = result.delta.metadata.selection
        names = "k xi d strategy teleport n_samples num_layers layers"
        assert set(recorded) == set(names.split())  # as in files of version 0.1
        assert "values" not in recorded["layers"][0]


class TestValues:
    def test_are_the_importance(self):
        selection = select_heads(tiny_model("bert"), [tiny_batch("bert")], k=1)
        assert selection.score == "pagerank"
        for layer in selection.layers:
            assert torch.equal(layer.values, layer.importance)

    def test_for_a_budget_are_shares_of_the_information_of_the_layer(self):
        model, batch = tiny_model("modernbert"), tiny_batch("modernbert")
        selection = select_heads(model, [batch], xi=0.99, strategy="budget", budget=4)
        for layer in selection.layers:
            total = layer.information_richness.sum()
            torch.testing.assert_close(layer.values.sum(), total, rtol=1e-9, atol=0)
            torch.testing.assert_close(layer.values / total, layer.importance, rtol=1e-12, atol=0)

    def test_for_a_budget_are_the_information_without_a_walk(self):
        model, batch = tiny_model("modernbert"), tiny_batch("modernbert")
        settings = {"xi": 0.99, "damping": 0.0, "strategy": "budget", "budget": 4}
        selection = select_heads(model, [batch], **settings)
        for layer in selection.layers:
            torch.testing.assert_close(layer.values, layer.information_richness, rtol=1e-12, atol=0)
