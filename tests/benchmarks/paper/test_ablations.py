"""benchmarks.paper.methods.ablations: the rankings of Tab. 3 against those computed by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.ablations import (
    RANDOM,
    RANKINGS,
    TABLE_3,
    as_printed,
    correlation_shares,
    drawn_again,
    inverted,
    select,
    walk,
)
from hifi.selection.head_selection import HeadSelection, LayerScores
from tests.benchmarks.paper.tiny import tiny_run

if TYPE_CHECKING:
    from benchmarks.paper.running import Workplace

CORRELATION = torch.tensor([[0.0, 4.0, 1.0], [4.0, 0.0, 2.0], [1.0, 2.0, 0.0]]).double()
INFORMATION = torch.tensor([1.0, 2.0, 5.0]).double()


def printed_limit(correlation: Tensor, information: Tensor, *, damping: float) -> np.ndarray:
    """Return P_t = 1/H + dᵗMᵗ(p⁽⁰⁾ − 1/H), the walk in closed form, at the t at which it stops."""
    moves = (correlation / correlation.sum(1, keepdim=True)).numpy()
    heads = len(information)
    away = (information / information.sum()).numpy() - 1 / heads
    for t in range(1, 1000):
        last = damping ** (t - 1) * np.linalg.matrix_power(moves, t - 1) @ away
        now = damping**t * np.linalg.matrix_power(moves, t) @ away
        if np.abs(now - last).sum() <= 1e-6:
            return 1 / heads + now
    raise AssertionError


def scored(*, values: Tensor = INFORMATION, correlation: Tensor = CORRELATION) -> HeadSelection:
    layer = LayerScores(
        values=values,
        information_richness=INFORMATION,
        correlation=correlation,
        importance=INFORMATION / INFORMATION.sum(),
        iterations=1,
        selected=(0,),
    )
    chosen = HeadSelection.from_scores(torch.stack([values, values]), k=1)
    return replace(chosen, layers=(layer, layer), damping=0.85)


class TestWalk:
    @pytest.mark.parametrize("damping", [0.0, 0.5, 0.85, 0.99])
    def test_is_the_printed_equation(self, damping: float):
        found = walk(CORRELATION, information=INFORMATION, damping=damping)
        expected = printed_limit(CORRELATION, INFORMATION, damping=damping)
        assert found.numpy() == pytest.approx(expected, abs=1e-14)

    def test_ends_near_the_uniform_limit_that_every_matrix_has(self):
        found = walk(CORRELATION, information=INFORMATION, damping=0.85)
        assert found.numpy() == pytest.approx([1 / 3] * 3, abs=1e-5)
        assert len(set(found.tolist())) == 3

    def test_a_head_without_correlation_jumps_anywhere(self):
        alone = CORRELATION.clone()
        alone[2, :] = alone[:, 2] = 0
        filled = alone.clone()
        filled[2, :] = 1
        found = walk(alone, information=INFORMATION, damping=0.5)
        expected = printed_limit(filled, INFORMATION, damping=0.5)
        assert found.numpy() == pytest.approx(expected, abs=1e-14)


class TestRankings:
    def test_the_printed_walk_is_in_singular_directions_for_a_budget(self):
        found = as_printed(scored(), 0)
        alone = walk(CORRELATION, information=INFORMATION, damping=0.85)
        assert torch.equal(found, torch.stack([8 * alone, 8 * alone]))

    def test_correlation_is_a_share_of_the_layers(self):
        # row sums 5, 6 and 3 of 14
        expected = torch.tensor([[5.0, 6.0, 3.0]] * 2).double() / 14
        assert torch.allclose(correlation_shares(scored(), 0), expected, atol=1e-15)

    def test_a_layer_without_correlation_has_no_shares(self):
        found = correlation_shares(scored(correlation=torch.zeros(3, 3).double()), 0)
        assert torch.equal(found, torch.zeros(2, 3).double())

    def test_the_inverse_prefers_the_lowest_of_the_scores_that_ranked(self):
        values = torch.tensor([0.3, 0.1, 0.2]).double()
        assert inverted(scored(values=values), 0).argsort(1, descending=True).tolist() == [
            [1, 2, 0],
            [1, 2, 0],
        ]

    def test_draws_differ_by_draw_and_by_seed_alone(self):
        first = drawn_again(scored(), 0, draw=1)
        assert torch.equal(first, drawn_again(scored(values=-INFORMATION), 0, draw=1))
        others = [drawn_again(scored(), seed, draw=draw) for seed, draw in ((0, 2), (1, 1))]
        assert not any(torch.equal(first, other) for other in others)


class TestMethods:
    def test_has_every_ranking_as_often_as_there_are_allotments(self):
        assert len(TABLE_3) == 2 * len(RANKINGS)
        assert set(TABLE_3) <= set(METHODS)
        assert TABLE_3["hifi"] == ("pagerank", "layer-wise")
        assert TABLE_3["hifi-pagerank-budget"] == ("pagerank", "budget")

    @pytest.mark.parametrize("allotment", ["layer-wise", "budget"])
    def test_rankings_by_hand_score_the_samples_of_the_librarys(
        self, workplace: Workplace, allotment: str
    ):
        run = tiny_run(workplace, "cola", head_start="probe")

        def same(selection: HeadSelection, _seed: int) -> Tensor:
            return torch.stack([layer.values for layer in selection.layers])

        chosen = select(run, scoring={"score": "pagerank", "strategy": allotment}, rank=same)
        name = "hifi" if allotment == "layer-wise" else "hifi-pagerank-budget"
        assert METHODS[name].run(run).heads == [(each.layer, each.head) for each in chosen.heads]

    def test_every_method_tunes_as_many_heads(self, workplace: Workplace):
        run = tiny_run(workplace, "cola", head_start="probe", epochs=1)
        heads = {name: METHODS[name].run(run).heads for name in TABLE_3}
        assert {len(each) for each in heads.values() if each} == {9}
        assert all(heads.values())
        layers = [layer for layer in range(3) for _ in range(3)]
        for name, (_, allotment) in TABLE_3.items():
            if allotment == "layer-wise":
                assert [layer for layer, _ in heads[name] or ()] == layers
        drawn = [name for name, each in TABLE_3.items() if each in product(RANDOM, ["budget"])]
        assert len({tuple(heads[name] or ()) for name in drawn}) == 3

    def test_the_lowest_heads_are_tuned_and_the_scoring_is_timed(self, workplace: Workplace):
        # With all 12 heads but one, the two ends of a ranking leave out the other's first.
        run = tiny_run(workplace, "cola", head_start="probe", epochs=1)
        settings = {"score": "pagerank", "strategy": "budget", "budget": 11}
        lowest = select(run, scoring=settings, rank=inverted)
        highest = select(run, scoring=settings, rank=lambda scores, seed: -inverted(scores, seed))
        assert len(lowest.heads) == len(highest.heads) == 11
        assert lowest.heads != highest.heads
        outcome = METHODS["hifi-pagerank-inverse"].run(run)
        assert outcome.seconds["selection"] > 0
        assert outcome.seconds["training"] > 0
