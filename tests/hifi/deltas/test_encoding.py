"""hifi.deltas.encoding: 255 values to a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hifi.deltas.encoding import add_differences, differences, quantize


class TestInt8:
    def test_hand_computed(self):
        codes, scale = quantize(torch.tensor([[127.0, -254.0, 3.0], [0.0, 0.0, 0.0]]))
        assert scale.tolist() == [2.0, 1.0]
        # 127/2 = 63.5 goes to the even 64, 3/2 = 1.5 to 2
        assert codes.tolist() == [[64, -127, 2], [0, 0, 0]]

    @given(
        st.lists(
            st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=3, max_size=3),
            min_size=1,
            max_size=4,
        )
    )
    def test_is_within_half_a_step_and_stable(self, values: list[list[float]]):
        weight = torch.tensor(values, dtype=torch.float32)
        codes, scale = quantize(weight)
        decoded = codes.float() * scale[:, None]
        greatest = weight.double().abs().amax(dim=1, keepdim=True)
        # The least normal number bounds what underflow takes.
        step = greatest / 127 * (1 + 2**-20) + torch.finfo(torch.float32).tiny
        assert ((decoded.double() - weight.double()).abs() <= step / 2 * (1 + 2**-20)).all()
        again, scale_again = quantize(decoded)
        if (greatest > 1e-30).all():
            assert torch.equal(again, codes)
            assert torch.equal(scale_again, scale)


class TestDifferences:
    NAME = "layers.0.heads.0.key.weight"
    BIAS = "layers.0.heads.0.key.bias"

    def test_hand_computed(self):
        # 1 + 2^-9 is no bfloat16: as bfloat16 it is 1.
        base = {self.NAME: torch.tensor([[1 + 2.0**-9]]), self.BIAS: torch.tensor([5.0])}
        rows = {self.NAME: torch.tensor([[1.5]]), self.BIAS: torch.tensor([7.0])}
        exact = differences(rows, base=base, compute_dtype="float32")
        assert exact[self.NAME].item() == 0.5 - 2.0**-9
        rounded = differences(rows, base=base, compute_dtype="bfloat16")
        assert rounded[self.NAME].item() == 0.5
        assert rounded[self.BIAS].item() == 7.0  # a bias is never a difference

    @pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
    def test_adding_gives_the_rows_back(self, compute_dtype: str):
        base = {self.NAME: torch.tensor([[1.0, -0.3]]), self.BIAS: torch.tensor([5.0])}
        rows = {self.NAME: torch.tensor([[1.5, 0.25]]), self.BIAS: torch.tensor([7.0])}
        change = differences(rows, base=base, compute_dtype=compute_dtype)
        back = add_differences(change, base=base, compute_dtype=compute_dtype)
        assert torch.allclose(back[self.NAME], rows[self.NAME], atol=1e-7, rtol=0)
        assert torch.equal(back[self.BIAS], rows[self.BIAS])
