from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hifi.errors import InvalidArgumentError
from hifi.selection.richness import RichnessSums, count_directions, information_richness
from tests import oracles


def with_singular_values(values: list[float], *, shape: tuple[int, int], seed: int = 0):
    """Build a dense matrix that has exactly these singular values, up to rounding."""
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.normal(size=(shape[0], len(values))))[0]
    right = np.linalg.qr(random.normal(size=(shape[1], len(values))))[0]
    return torch.from_numpy(left * values @ right.T)


class TestInformationRichness:
    @pytest.mark.parametrize(
        ("xi", "expected"), [(0.39, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.71, 3), (0.9, 3), (1, 4)]
    )
    def test_is_the_smallest_count_that_reaches_the_share(self, xi, expected):
        # Σσ = 10: shares 0.4, 0.7, 0.9, 1.
        assert information_richness(torch.diag(torch.tensor([1.0, 3, 2, 4])), xi=xi) == expected

    def test_is_a_share_of_the_sum_and_not_of_the_squares(self):
        # Squares: 9 of 12 = 0.75 would be reached by one direction; the sum: 3 of 6 is not.
        assert information_richness(torch.diag(torch.tensor([3.0, 1, 1, 1])), xi=0.75) == 3

    @pytest.mark.parametrize("shape", [(10, 10), (20, 32), (32, 20), (60, 16)])
    @pytest.mark.parametrize(("xi", "expected"), [(0.9, 9), (0.3, 3), (0.7, 7), (1.0, 10)])
    def test_counts_equal_singular_values_exactly(self, shape, xi, expected):
        matrix = with_singular_values([1.0] * 10, shape=shape)
        assert information_richness(matrix, xi=xi) == expected

    def test_counts_equal_singular_values_in_spite_of_their_rounding(self):
        # Decomposed, the first three of these ten sum up to less than 0.3 of them all.
        matrix = with_singular_values([1.0] * 10, shape=(13, 10))
        assert information_richness(matrix, xi=0.3) == 3

    def test_of_a_zero_output_is_one(self):
        assert information_richness(torch.zeros(2, 5, 4), xi=0.9).tolist() == [1, 1]

    def test_of_one_token_is_one(self):
        assert information_richness(torch.randn(3, 1, 8), xi=1.0).tolist() == [1, 1, 1]

    def test_of_a_product_of_vectors_is_one(self):
        assert information_richness(torch.outer(torch.arange(1.0, 30), torch.ones(9)), xi=1.0) == 1

    @pytest.mark.parametrize("scale", [1e-200, 1e-30, 3.0, 1e30, 1e200])
    def test_does_not_change_with_scale(self, scale):
        matrices = torch.randn(4, 12, 8, dtype=torch.float64)
        expected = information_richness(matrices, xi=0.8)
        assert torch.equal(information_richness(matrices * scale, xi=0.8), expected)
        assert expected.max() > 1

    def test_keeps_the_leading_shape(self):
        counts = information_richness(torch.randn(2, 3, 7, 5), xi=0.9)
        assert counts.shape == (2, 3)
        assert counts.dtype == torch.int64

    def test_upcasts_half_precision(self):
        matrices = torch.randn(6, 20, 16).bfloat16()
        expected = [oracles.richness(each.double().numpy(), xi=0.9) for each in matrices]
        assert information_richness(matrices, xi=0.9).tolist() == expected

    @given(
        hnp.arrays(
            np.float64,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.floats(-8, 8, width=16) | st.integers(-2, 2),
        ),
        st.floats(0.01, 1.0) | st.sampled_from([0.25, 0.5, 0.75, 0.9]),
    )
    def test_equals_a_singular_value_decomposition(self, matrix, xi):
        count = int(information_richness(torch.from_numpy(matrix), xi=xi))
        assert count == oracles.richness(matrix, xi=xi)
        assert 1 <= count <= min(matrix.shape)

    @given(st.integers(1, 40), st.integers(1, 24), st.integers(0, 6), st.integers(0, 2**32 - 1))
    def test_equals_it_where_singular_values_decay_below_rounding(self, tokens, width, decay, seed):
        rank = min(tokens, width)
        values = [10.0 ** (-decay * step) for step in range(rank)]
        matrix = with_singular_values(values, shape=(tokens, width), seed=seed)
        for xi in (0.5, 0.9, 0.999, 1 - 1e-9):
            assert information_richness(matrix, xi=xi) == oracles.richness(matrix.numpy(), xi=xi)

    def test_uses_every_thread_to_the_same_end(self, monkeypatch):
        matrices = torch.randn(7, 9, 6)
        expected = information_richness(matrices, xi=0.9)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert torch.equal(information_richness(matrices, xi=0.9), expected)

    @pytest.mark.parametrize("xi", [0, -0.1, 1.0001, float("nan"), float("inf"), True, "0.9", None])
    def test_refuses_a_share_outside_its_range(self, xi):
        with pytest.raises(InvalidArgumentError, match=r"xi=.*\(0, 1\]") as caught:
            information_richness(torch.ones(2, 2), xi=xi)
        assert caught.value.param == "xi"

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 3), (5,)])
    def test_refuses_an_empty_output(self, shape):
        with pytest.raises(InvalidArgumentError, match="head_output"):
            information_richness(torch.ones(shape), xi=0.9)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_an_output_that_is_not_finite(self, value):
        matrix = torch.ones(3, 3)
        matrix[1, 2] = value
        with pytest.raises(InvalidArgumentError, match="finite"):
            information_richness(matrix, xi=0.9)


class TestCountDirections:
    def test_ignores_padding(self):
        random = torch.Generator().manual_seed(0)
        real = [torch.randn(n, 8, generator=random, dtype=torch.float64) for n in (3, 8, 20, 1)]
        padded = torch.nn.utils.rnn.pad_sequence(real, batch_first=True)
        tokens = torch.tensor([len(each) for each in real])
        expected = [oracles.richness(each.numpy(), xi=0.95) for each in real]
        counts = count_directions([padded, padded * 2], tokens=tokens, xi=0.95)
        assert counts.tolist() == [expected, expected]

    def test_lets_no_noise_beyond_the_real_tokens_count(self):
        # Two tokens in eight columns: six eigenvalues of the Gram matrix are rounding noise, whose
        # roots are 1e-8 of the largest.
        matrix = torch.zeros(1, 9, 8, dtype=torch.float64)
        matrix[0, :2] = with_singular_values([1.0, 1e-3], shape=(2, 8))
        counts = count_directions([matrix], tokens=torch.tensor([2]), xi=1 - 1e-9)
        assert counts.tolist() == [[2]]


class TestRichnessSums:
    def test_adds_up_layers_and_batches(self, monkeypatch):
        outputs = torch.randn(5, 2, 3, 6, 4, dtype=torch.float64)  # batch, layer, sample, …
        outputs = outputs[:, :, :, None].expand(-1, -1, -1, 2, -1, -1).contiguous()
        outputs[:, :, :, 1, :, 2:] = 0
        expected = information_richness(outputs, xi=0.9).sum((0, 2))
        for at_once in (1, 2**20):
            monkeypatch.setattr("hifi.selection.richness._AT_ONCE", at_once)
            sums = RichnessSums((2, 2), xi=0.9)
            for batch in outputs:
                for layer, output in enumerate(batch):
                    sums.add(layer, output, tokens=torch.full((3,), 6))
                sums.settle()
            assert torch.equal(sums.counts, expected)

    def test_a_layer_that_still_waits_is_not_lost_to_the_next_batch(self):
        random = torch.Generator().manual_seed(0)
        first, second = (
            torch.randn(samples, 2, length, 4, generator=random, dtype=torch.float64)
            for samples, length in ((3, 6), (2, 5))
        )
        sums = RichnessSums((1, 2), xi=0.9)
        for batch in (first, second):
            sums.add(0, batch, tokens=torch.full((len(batch),), batch.shape[2]))
        sums.settle()
        expected = sum(information_richness(batch, xi=0.9).sum(0) for batch in (first, second))
        assert torch.equal(sums.counts, expected[None])
