"""hifi.training.learning_rate: the learning rate of each step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.settings import Hyperparameters
from hifi.training.learning_rate import learning_rate_at


def rates_of(total: int, **settings: float) -> list[float]:
    given = Hyperparameters(**settings)
    return [learning_rate_at(step, total_steps=total, settings=given) for step in range(total)]


class TestLearningRate:
    def test_rises_and_falls_linearly(self):
        rates = rates_of(10, learning_rate=1.0, warmup_ratio=0.2)
        assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])

    @given(total=st.integers(1, 200), ratio=st.floats(0, 1))
    def test_every_step_learns_and_the_peak_is_the_given_rate(self, total: int, ratio: float):
        rates = rates_of(total, learning_rate=0.5, warmup_ratio=ratio)
        assert min(rates) > 0
        assert max(rates) == 0.5
        peak = rates.index(0.5)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
