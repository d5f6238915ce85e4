"""hifi.reproducibility: a run's random states are its own."""

from __future__ import annotations

import pytest
import torch

from hifi.reproducibility import own_random_state, random_states, seed_random, set_random_states

CPU = torch.device("cpu")


class TestOwnRandomState:
    @pytest.mark.parametrize("fails", [False, True])
    def test_the_callers_state_is_given_back(self, fails: bool):
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
    def test_go_on_where_they_were(self):
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
