from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hifi.errors import ConvergenceError, InvalidArgumentError
from hifi.selection.pagerank import pagerank
from tests import oracles

STAR = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 0, 0]])
ONES = torch.ones(3)


@st.composite
def graphs(draw):
    """Draw r, symmetric with some zeros, and I."""
    heads = draw(st.integers(1, 7))
    entries = st.just(0.0) | st.floats(1e-6, 10)
    correlation = np.zeros((heads, heads))
    for a in range(heads):
        for b in range(a):
            correlation[a, b] = correlation[b, a] = draw(entries)
    information = np.array([draw(st.floats(1, 64)) for _ in range(heads)])
    return correlation, information


class TestPagerank:
    def test_by_hand(self):
        # The centre: p = d·(1 − p) + (1 − d)/3, so p = (d + (1 − d)/3) / (1 + d).
        centre = (0.5 + 0.5 / 3) / 1.5
        result = pagerank(STAR, information=ONES, damping=0.5)
        expected = [centre, (1 - centre) / 2, (1 - centre) / 2]
        assert result.importance.tolist() == pytest.approx(expected, abs=1e-9)

    def test_walks_along_the_transpose(self):
        # The limit of M·P, as Eq. (10) is printed, would be uniform for every M.
        importance = pagerank(STAR, information=ONES, teleport="uniform").importance
        assert importance[0] > 0.4

    @given(graphs(), st.floats(0, 0.9), st.sampled_from(["information", "uniform"]))
    def test_equals_networkx(self, graph, damping, teleport):
        correlation, information = graph
        result = pagerank(
            torch.from_numpy(correlation),
            information=torch.from_numpy(information),
            damping=damping,
            teleport=teleport,
        )
        expected = oracles.pagerank(correlation, information, damping=damping, teleport=teleport)
        np.testing.assert_allclose(result.importance, expected, atol=2e-9)
        assert result.importance.sum().item() == pytest.approx(1, abs=1e-12)

    @given(graphs(), st.randoms(use_true_random=False))
    def test_renaming_heads_renames_scores(self, graph, random):
        correlation, information = map(torch.from_numpy, graph)
        order = list(range(len(information)))
        random.shuffle(order)
        plain = pagerank(correlation, information=information).importance
        renamed = pagerank(correlation[order][:, order], information=information[order]).importance
        torch.testing.assert_close(renamed, plain[order], atol=1e-12, rtol=0)

    @pytest.mark.parametrize("scale", [1e-300, 1e-12, 5e307])
    def test_does_not_change_with_the_scale_of_either(self, scale):
        weights = torch.tensor([[0.0, 3, 1], [3, 0, 2], [1, 2, 0]], dtype=torch.float64)
        information = torch.tensor([1.0, 2, 3], dtype=torch.float64)
        plain = pagerank(weights, information=information).importance
        scaled = pagerank(weights * scale, information=information * scale).importance
        torch.testing.assert_close(scaled, plain, atol=1e-12, rtol=0)

    def test_information_counts_under_its_own_teleport_only(self):
        information = torch.tensor([1.0, 1, 8])
        informed = pagerank(STAR, information=information).importance
        assert informed[2] > informed[1]
        uniform = pagerank(STAR, information=information, teleport="uniform").importance
        expected = pagerank(STAR, information=ONES, teleport="uniform").importance
        torch.testing.assert_close(uniform, expected, atol=1e-9, rtol=0)

    def test_a_head_without_correlation_walks_on_to_the_teleport_vector(self):
        weights = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
        information = torch.tensor([1.0, 1, 2])
        result = pagerank(weights, information=information)
        # p₃ = (1 − d)·½ + d·½·p₃; were the row left zero, p* would not sum to 1.
        alone = 0.15 / 2 / (1 - 0.85 / 2)
        expected = [(1 - alone) / 2, (1 - alone) / 2, alone]
        assert result.importance.tolist() == pytest.approx(expected, abs=1e-9)

    def test_without_any_correlation_gives_the_teleport_vector(self):
        result = pagerank(torch.zeros(2, 2), information=torch.tensor([1.0, 3]))
        assert result.importance.tolist() == [0.25, 0.75]

    def test_one_head_takes_all(self):
        result = pagerank(torch.zeros(1, 1), information=torch.tensor([7.0]))
        assert result.importance.tolist() == [1.0]
        assert result.iterations == 1

    def test_without_damping_gives_the_teleport_vector(self):
        result = pagerank(STAR, information=torch.tensor([1.0, 2, 1]), damping=0)
        assert result.importance.tolist() == [0.25, 0.5, 0.25]

    def test_starts_from_information_and_stops_within_the_tolerance(self):
        # From (¾, ¼) to (⅜, ⅝): ‖ΔP‖₁ = ¾, halved by each further step, so ¾·0.5ⁿ⁻¹ at step n.
        weights = torch.tensor([[0.0, 1], [1, 0]])
        information = torch.tensor([3.0, 1])
        uniform = pagerank(weights, information=information, damping=0.5, teleport="uniform")
        assert uniform.iterations == 34
        # The information teleport is where the walk starts, but not where it stays.
        assert pagerank(weights, information=information, damping=0.5).iterations == 34

    def test_raises_when_it_does_not_converge(self):
        weights = torch.tensor([[0.0, 1], [1, 0]])
        with pytest.raises(ConvergenceError, match=r"damping=0\.9999 .*1000 steps.*1e-10"):
            pagerank(weights, information=torch.tensor([1.0, 9]), damping=0.9999)

    @pytest.mark.parametrize("damping", [1, 1.5, -0.1, float("nan"), True, "0.85", None])
    def test_refuses_a_damping_outside_its_range(self, damping):
        with pytest.raises(InvalidArgumentError, match=r"damping=.*\[0, 1\)"):
            pagerank(STAR, information=ONES, damping=damping)

    def test_refuses_an_unknown_teleport(self):
        with pytest.raises(InvalidArgumentError, match=r"teleport='home'.*information, uniform"):
            pagerank(STAR, information=ONES, teleport="home")

    @pytest.mark.parametrize(
        ("correlation", "information", "param"),
        [
            (STAR[:2], ONES, "correlation"),
            (-STAR, ONES, "correlation"),
            (STAR * float("nan"), ONES, "correlation"),
            (STAR, torch.ones(3, 1), "information"),
            (STAR, torch.ones(0), "information"),
            (STAR, torch.tensor([1.0, 0, 1]), "information"),
            (STAR, torch.tensor([1.0, float("inf"), 1]), "information"),
        ],
    )
    def test_refuses_invalid_scores(self, correlation, information, param):
        with pytest.raises(InvalidArgumentError) as caught:
            pagerank(correlation, information=information)
        assert caught.value.param == param
