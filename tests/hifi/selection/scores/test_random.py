"""hifi.selection.scores.random: draws by the seed alone."""

from __future__ import annotations

import torch

from hifi.selection.scoring import select_heads
from tests.architectures import LAYERS, QUERY_HEADS, tiny_batch, tiny_model


def draw(**arguments):
    """Select at random in a tiny BERT."""
    return select_heads(
        tiny_model("bert"), [tiny_batch("bert")], **{"k": 2, "score": "random", **arguments}
    )


class TestValues:
    def test_follow_the_seed_and_nothing_else(self):
        first = draw(seed=3)
        other = select_heads(
            tiny_model("bert", seed=5),
            [tiny_batch("bert", seed=8)],
            score="random",
            strategy="budget",
            budget=4,
            seed=3,
        )
        for scores, expected in zip(other.layers, first.layers, strict=True):
            assert torch.equal(scores.values, expected.values)
        assert draw(seed=3).heads == first.heads
        assert len({draw(seed=seed).heads for seed in range(6)}) > 3

    def test_choose_every_head_about_as_often(self):
        counts = torch.zeros(LAYERS, QUERY_HEADS)
        for seed in range(100):
            for head in draw(seed=seed, k=1).heads:
                counts[head.layer, head.head] += 1
        assert counts.min() >= 10
        assert counts.max() <= 40
