"""hifi.data.head_shares: scores on any scale, comparable within their pool."""

from __future__ import annotations

import pytest

from hifi.data.head_shares import pool_of, shares_of


class TestShares:
    def test_scores_on_any_scale_are_shares_of_their_layer(self):
        values = [[2e-9, 6e-9], [1e308, 1e308], [0.0, None], [-1.0, 3.0]]
        shares = [[0.25, 0.75], [0.5, 0.5], [0, 0], [-0.25, 0.75]]
        assert shares_of(values, pool="layer") == [pytest.approx(row) for row in shares]

    def test_scores_for_a_budget_are_shares_of_the_model(self):
        shares = shares_of([[1, 2], [7, 0]], pool=pool_of(3))
        assert shares == [pytest.approx([0.1, 0.2]), pytest.approx([0.7, 0])]

    def test_without_a_budget_heads_compete_within_their_layer(self):
        assert pool_of(None) == "layer"
