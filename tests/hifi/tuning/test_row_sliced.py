"""The row-sliced projection against plain autograd on hand-made and random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hifi.errors import TunerError
from hifi.tuning.row_sliced import TunedProjection

ROWS = torch.tensor([1, 2, 5])


def linear(*, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(4, 6, bias=bias).to(dtype)


def conv1d():
    torch.manual_seed(0)
    module = Conv1D(6, 4)
    module.bias.data.normal_()
    return module


@pytest.fixture(params=["linear", "no-bias", "conv1d"])
def plain(request):
    return {"linear": linear, "no-bias": lambda: linear(bias=False), "conv1d": conv1d}[
        request.param
    ]()


def rows_of(module, gradient):
    return gradient.T[ROWS] if isinstance(module, Conv1D) else gradient[ROWS]


class TestForward:
    def test_projects_by_hand_made_rows(self):
        plain = nn.Linear(2, 3)
        plain.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        plain.bias.data = torch.tensor([0.0, 10.0, 0.0])
        tuned = TunedProjection(plain, rows=torch.tensor([1]))
        tuned.tuned_weight.data = torch.tensor([[3.0, 4.0]])
        tuned.tuned_bias.data = torch.tensor([-1.0])
        assert tuned(torch.tensor([[1.0, 1.0]])).tolist() == [[1.0, 6.0, 4.0]]

    def test_equals_the_plain_projection_before_training(self, plain):
        inputs = torch.randn(2, 3, 4)
        expected = plain(inputs)
        assert torch.equal(TunedProjection(plain, rows=ROWS)(inputs), expected)

    def test_uses_rows_that_were_written_without_a_version_bump(self, plain):
        tuned = TunedProjection(plain, rows=ROWS)
        inputs = torch.randn(2, 4)
        before = tuned(inputs)
        tuned.tuned_weight.data.numpy()[...] += 1  # as a fused optimizer does
        after = tuned(inputs)
        assert (after != before).any(0).nonzero().flatten().tolist() == ROWS.tolist()


class TestTrainableWeight:
    def test_gives_the_products_of_forward_and_their_gradients(self, plain):
        tuned = TunedProjection(plain, rows=ROWS)
        tuned.tuned_weight.data += 1
        inputs, seed = torch.randn(5, 4), torch.randn(5, 6)
        expected = tuned(inputs)
        parameters = [p for p in (tuned.tuned_weight, tuned.tuned_bias) if p is not None]
        gradients = torch.autograd.grad(expected, parameters, seed)
        weight, bias = tuned.trainable_weight()
        assert (bias is None) == (tuned.tuned_bias is None)
        projected = nn.functional.linear(inputs, weight, bias)
        torch.testing.assert_close(projected, expected)
        for gradient, reference in zip(
            torch.autograd.grad(projected, parameters, seed), gradients, strict=True
        ):
            torch.testing.assert_close(gradient, reference)


class TestGradients:
    def test_equal_those_of_plain_autograd(self, plain):
        reference = copy.deepcopy(plain)
        inputs = torch.randn(2, 3, 4, requires_grad=True)
        mirror = inputs.detach().clone().requires_grad_()
        tuned = TunedProjection(plain, rows=ROWS)
        tuned(inputs).square().sum().backward()
        reference(mirror).square().sum().backward()
        torch.testing.assert_close(inputs.grad, mirror.grad)
        expected = rows_of(reference, reference.weight.grad)
        torch.testing.assert_close(tuned.tuned_weight.grad, expected)
        if reference.bias is not None:
            torch.testing.assert_close(tuned.tuned_bias.grad, reference.bias.grad[ROWS])

    def test_pass_gradcheck_in_float64(self):
        tuned = TunedProjection(linear(dtype=torch.float64), rows=ROWS)
        tuned.tuned_weight.data = tuned.tuned_weight.data.double()
        tuned.tuned_bias.data = tuned.tuned_bias.data.double()
        inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(tuned, (inputs,))

    def test_equal_those_of_plain_autograd_under_bfloat16_autocast(self, plain):
        reference = copy.deepcopy(plain)
        tuned = TunedProjection(plain, rows=ROWS)
        inputs = torch.randn(5, 4)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = tuned(inputs)
        assert outputs.dtype == torch.bfloat16
        outputs.float().square().sum().backward()
        reference(inputs).square().sum().backward()
        assert tuned.tuned_weight.grad.dtype == torch.float32
        expected = rows_of(reference, reference.weight.grad)
        torch.testing.assert_close(tuned.tuned_weight.grad, expected, atol=0.1, rtol=0.05)
        if reference.bias is not None:
            expected = reference.bias.grad[ROWS]
            torch.testing.assert_close(tuned.tuned_bias.grad, expected, atol=0.1, rtol=0.05)

    def test_reach_float32_rows_of_a_bfloat16_weight(self, plain):
        plain = plain.to(torch.bfloat16)
        reference = copy.deepcopy(plain).float()
        tuned = TunedProjection(plain, rows=ROWS)
        inputs = torch.randn(5, 4).bfloat16()
        tuned(inputs).float().square().sum().backward()
        reference(inputs.float()).square().sum().backward()
        assert tuned.tuned_weight.grad.dtype == torch.float32
        assert tuned.frozen_weight.grad is None
        expected = rows_of(reference, reference.weight.grad)
        torch.testing.assert_close(tuned.tuned_weight.grad, expected, atol=0.1, rtol=0.05)

    def test_survive_two_forwards_before_one_backward(self):
        tuned, reference = TunedProjection(linear(), rows=ROWS), linear()
        first, second = torch.randn(2, 4), torch.randn(3, 4)
        (tuned(first).square().sum() + tuned(second).square().sum()).backward()
        (reference(first).square().sum() + reference(second).square().sum()).backward()
        torch.testing.assert_close(tuned.tuned_weight.grad, reference.weight.grad[ROWS])


class TestStateDict:
    def test_is_that_of_the_plain_projection_with_the_rows_in_place(self, plain):
        keys = list(plain.state_dict())
        tuned = TunedProjection(plain, rows=ROWS)
        tuned.tuned_weight.data += 1
        state = tuned.state_dict()
        assert list(state) == keys
        assert torch.equal(rows_of(plain, state["weight"]), tuned.tuned_weight)

    def test_keeps_float32_rows_of_a_bfloat16_weight(self, plain):
        plain = plain.to(torch.bfloat16)
        other = TunedProjection(copy.deepcopy(plain), rows=ROWS)
        tuned = TunedProjection(plain, rows=ROWS)
        tuned.tuned_weight.data += 2.0**-12  # below bfloat16's resolution
        other.load_state_dict(tuned.state_dict())
        assert torch.equal(other.tuned_weight, tuned.tuned_weight)
        assert torch.equal(other.frozen_weight, tuned.frozen_weight)

    def test_is_read_back(self, plain):
        tuned = TunedProjection(copy.deepcopy(plain), rows=ROWS)
        changed = {key: value + 1 for key, value in plain.state_dict().items()}
        tuned.load_state_dict(changed)
        assert torch.equal(tuned.weight, changed["weight"])
        assert torch.equal(tuned.tuned_weight, rows_of(plain, changed["weight"]))

    def test_names_missing_and_misshapen_entries(self):
        tuned = TunedProjection(linear(), rows=ROWS)
        with pytest.raises(RuntimeError, match="weight"):
            tuned.load_state_dict({"bias": torch.zeros(6)})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*junk"):
            tuned.load_state_dict({**tuned.state_dict(), "junk": torch.zeros(1)})
        with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(2, 2\)"):
            tuned.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(6)})


class TestPlain:
    def test_restores_the_projection_in_its_own_storage(self, plain):
        inputs, storage = torch.randn(2, 4), plain.weight.data_ptr()
        tuned = TunedProjection(plain, rows=ROWS)
        tuned.tuned_weight.data += 1
        expected = tuned(inputs)
        back = tuned.plain()
        assert back is plain
        assert back.weight.data_ptr() == storage
        assert torch.equal(back(inputs), expected)

    def test_copies_train_apart(self, plain):
        tuned = TunedProjection(plain, rows=ROWS)
        twin = copy.deepcopy(tuned)
        twin.tuned_weight.data += 1
        inputs = torch.randn(2, 4)
        twin(inputs)
        assert not torch.equal(twin(inputs), tuned(inputs))
        assert torch.equal(rows_of(plain, tuned.weight), tuned.tuned_weight)


class TestDtype:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_refuses_a_change(self, dtype):
        tuned = TunedProjection(linear(), rows=ROWS)
        with pytest.raises(TunerError, match="dtype"):
            tuned.to(dtype)
        assert tuned.frozen_weight.dtype == torch.float32

    def test_refuses_to_turn_a_bfloat16_backbone_into_float32(self):
        tuned = TunedProjection(linear(dtype=torch.bfloat16), rows=ROWS)
        with pytest.raises(TunerError, match="dtype"):
            tuned.float()
