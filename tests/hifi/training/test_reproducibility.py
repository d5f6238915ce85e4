"""hifi.training.reproducibility: own random states, and kernels that repeat themselves."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import torch

from hifi.training.reproducibility import (
    own_random_state,
    random_states,
    reproducible_kernels,
    seed_random,
    set_random_states,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def kernel_settings() -> tuple[bool, bool, bool]:
    """Return torch's settings: deterministic, warn only, fill uninitialised memory."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(params=[(False, False, True), (True, False, True), (True, True, False)])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Set what a caller may have set; restore it afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is taken back afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    untouched = kernel_settings()
    set_kernels(*request.param)
    yield request.param
    set_kernels(*untouched)


def set_kernels(is_deterministic: bool, is_warn_only: bool, fills_memory: bool) -> None:
    torch.use_deterministic_algorithms(is_deterministic, warn_only=is_warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fills_memory


class TestReproducibleKernels:
    """The settings for a CUDA device can be applied without one."""

    @pytest.mark.usefixtures("before")
    def test_are_chosen_inside_the_block(self):
        with reproducible_kernels(CUDA):
            assert kernel_settings() == (True, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    @pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
    def test_are_restored_however_it_ends(self, before, error: type[BaseException] | None):
        with suppress(RuntimeError, KeyboardInterrupt), reproducible_kernels(CUDA):
            assert kernel_settings() == (True, True, False)
            if error is not None:
                raise error
        assert kernel_settings() == before

    @pytest.mark.usefixtures("before")
    def test_leave_a_workspace_that_is_chosen(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        with reproducible_kernels(CUDA):
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

    def test_need_nothing_on_a_cpu(self, before):
        with reproducible_kernels(CPU):
            assert kernel_settings() == before
            assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


class TestOwnRandomState:
    @pytest.mark.parametrize("fails", [False, True])
    def test_the_callers_state_is_restored(self, fails: bool):
        torch.manual_seed(1)
        expected = torch.rand(4)
        torch.manual_seed(1)

        def work() -> None:
            with own_random_state(CPU):
                seed_random(7, device=CPU)
                torch.rand(100)
                if fails:
                    raise RuntimeError

        if fails:
            with pytest.raises(RuntimeError):
                work()
        else:
            work()
        assert torch.rand(4).equal(expected)


class TestStates:
    def test_continue_where_they_were(self):
        seed_random(3, device=CPU)
        torch.rand(5)
        states = random_states(CPU)
        expected = torch.rand(5)
        seed_random(9, device=CPU)
        set_random_states(states, device=CPU)
        assert torch.rand(5).equal(expected)
        assert all(state.dtype == torch.uint8 for state in states.values())

    def test_none_leaves_them_as_they_are(self):
        seed_random(3, device=CPU)
        expected = torch.rand(5)
        seed_random(3, device=CPU)
        set_random_states({}, device=CPU)
        assert torch.rand(5).equal(expected)
