"""hifi.backbones.devices: what ``auto`` resolves to, and unavailable devices."""

from __future__ import annotations

import contextlib

import pytest
import torch

from hifi.backbones.devices import (
    computed_in_float32,
    resolve_attention,
    resolve_device,
    resolve_dtype,
    serving_dtype,
)
from hifi.errors import InvalidArgumentError
from tests.architectures import tiny_batch, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class TestDevice:
    def test_auto_is_the_available_device(self):
        assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert resolve_device("cpu") == CPU
        assert resolve_device(CPU) == CPU

    @pytest.mark.parametrize("device", ["nonsense", "cuda:99", "mps", "meta"])
    def test_a_missing_device_is_refused(self, device: str):
        with pytest.raises(InvalidArgumentError, match=f"device='{device}'.*auto, cpu"):
            resolve_device(device)

    @pytest.mark.parametrize("device", [None, 1.5, ["cpu"], torch.float32], ids=str)
    def test_a_value_that_names_no_device_is_refused(self, device):
        with pytest.raises(InvalidArgumentError, match="auto, cpu"):
            resolve_device(device)


class TestDtype:
    @pytest.mark.parametrize(
        ("capabilities", "dtype"),
        [
            ({"avx512_bf16": True}, torch.bfloat16),
            ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
            ({"avx512_f": True, "avx2": True}, torch.float32),
            ({}, torch.float32),
        ],
    )
    def test_auto_depends_on_the_processor(
        self, capabilities, dtype, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        assert resolve_dtype("auto", device=CPU) == dtype

    @pytest.mark.parametrize("has_it", [True, False])
    def test_auto_depends_on_the_gpu(self, has_it: bool, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_it)
        expected = torch.bfloat16 if has_it else torch.float32
        assert resolve_dtype("auto", device=CUDA) == expected

    def test_a_named_dtype_is_used(self):
        assert resolve_dtype("float32", device=CPU) == torch.float32
        assert resolve_dtype("bfloat16", device=CPU) == torch.bfloat16

    def test_an_unknown_dtype_is_refused(self):
        with pytest.raises(InvalidArgumentError, match=r"precision='float16'.*bfloat16"):
            resolve_dtype("float16", device=CPU)  # type: ignore[arg-type]


class TestServingDtype:
    def test_is_the_stored_one_if_that_is_wide(self):
        for dtype in (torch.float32, torch.float64):
            assert serving_dtype(dtype, device=CPU) == dtype

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("has_bfloat16", [True, False])
    def test_is_what_the_device_does_well_if_not(
        self, has_bfloat16: bool, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_bfloat16})
        expected = torch.bfloat16 if has_bfloat16 else torch.float32
        assert serving_dtype(stored, device=CPU) == expected == resolve_dtype("auto", device=CPU)


class TestAttention:
    def test_short_sequences_on_a_cpu_use_eager_attention(self):
        half = torch.bfloat16
        assert resolve_attention(device=CPU, dtype=half, max_length=128) == "eager"
        assert resolve_attention(device=CPU, dtype=half, max_length=129) == "sdpa"
        assert resolve_attention(device=CPU, dtype=torch.float32, max_length=16) == "sdpa"
        assert resolve_attention(device=CUDA, dtype=half, max_length=16) == "sdpa"


class TestComputedInFloat32:
    @pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
    def model(self, request: pytest.FixtureRequest):
        """Return a model with narrow tensors, one of them a buffer."""
        model = tiny_model("gpt2", dtype=request.param, num_labels=2).eval()
        model.register_buffer("some", torch.ones(3, dtype=request.param))
        return model

    def test_has_the_same_values_in_float32(self, model):
        before = {name: value.float() for name, value in model.state_dict().items()}
        with computed_in_float32(model):
            inside = model.state_dict()
            assert {value.dtype for value in inside.values()} == {torch.float32}
            assert all(inside[name].equal(value) for name, value in before.items())
            assert model.some.dtype == torch.float32

    def test_gradients_are_float32(self, model):
        with computed_in_float32(model):
            loss = model(**tiny_batch("gpt2", labels=True)).loss
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found = [gradient for gradient in gradients if gradient is not None]
        assert {gradient.dtype for gradient in found} == {torch.float32}

    @pytest.mark.parametrize("failure", [False, True])
    def test_the_model_has_its_very_tensors_again(self, model, failure: bool):
        tensors = [*model.parameters(), *model.buffers()]
        places = [each.data_ptr() for each in tensors]
        copies = [each.detach().clone() for each in tensors]
        with contextlib.suppress(ZeroDivisionError), computed_in_float32(model):
            assert model.transformer.wte.weight.data_ptr() not in places
            if failure:
                raise ZeroDivisionError
        assert [each.data_ptr() for each in (*model.parameters(), *model.buffers())] == places
        for each, copy in zip(tensors, copies, strict=True):
            assert each.dtype == copy.dtype
            assert each.equal(copy)

    def test_a_wide_model_is_left_alone(self):
        model = tiny_model("bert")
        places = [each.data_ptr() for each in model.parameters()]
        with computed_in_float32(model):
            assert [each.data_ptr() for each in model.parameters()] == places
