from __future__ import annotations

import numpy as np
import pytest
import torch

from hifi.errors import InvalidArgumentError
from hifi.selection.correlation import head_correlation
from tests import oracles


class TestHeadCorrelation:
    def test_by_hand(self):
        # Centred: (-1, 0, 1), (2, 0, -2), (1, -2, 1); products −4, 0, 0; divided by 3 − 1.
        means = torch.tensor([[1.0, 2, 3], [5, 3, 1], [3, 0, 3]])
        expected = torch.tensor([[0.0, 2, 0], [2, 0, 0], [0, 0, 0]], dtype=torch.float64)
        assert torch.equal(head_correlation(means), expected)

    def test_equals_explicit_loops(self):
        means = torch.randn(4, 5, 7, dtype=torch.float64)
        correlation = head_correlation(means)
        for sample, outputs in zip(correlation, means.numpy(), strict=True):
            for a in range(5):
                for b in range(5):
                    expected = 0 if a == b else abs(oracles.covariance(outputs[a], outputs[b]))
                    assert sample[a, b].item() == pytest.approx(expected, abs=1e-14)

    def test_equals_numpy(self):
        means = np.random.default_rng(0).normal(size=(6, 9))
        expected = np.abs(np.cov(means)) * (1 - np.eye(6))
        np.testing.assert_allclose(head_correlation(torch.from_numpy(means)), expected, atol=1e-14)

    def test_takes_the_absolute_value_of_each_sample(self):
        one = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
        other = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # the opposite covariance
        assert head_correlation(torch.stack([one, other]))[:, 0, 1].tolist() == [2, 2]

    def test_computes_in_float64(self):
        means = torch.tensor([[1e8, 1e8 + 8, 1e8], [0.0, 1.0, 0.0]])
        assert head_correlation(means)[0, 1].item() == pytest.approx(8 / 3, rel=1e-12)

    def test_of_a_single_head_is_zero(self):
        assert head_correlation(torch.randn(1, 4)).tolist() == [[0.0]]

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (0, 4), (2, 3, 0)])
    def test_refuses_shapes_without_a_covariance(self, shape):
        with pytest.raises(InvalidArgumentError, match="mean_outputs"):
            head_correlation(torch.ones(shape))
