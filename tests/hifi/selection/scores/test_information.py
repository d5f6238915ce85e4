"""hifi.selection.scores.information: I_h alone."""

from __future__ import annotations

import torch

from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from tests.architectures import tiny_batch, tiny_model


class TestValues:
    def test_are_the_richness_in_any_allotment(self):
        model, batch = tiny_model("modernbert"), tiny_batch("modernbert")
        for allotment in ({"k": 2}, {"strategy": "budget", "budget": 5}):
            selection = select_heads(model, [batch], score="information", xi=0.99, **allotment)
            richness = torch.stack([layer.information_richness for layer in selection.layers])
            assert torch.equal(torch.stack([each.values for each in selection.layers]), richness)
            assert selection.heads == HeadSelection.from_scores(richness, **allotment).heads
