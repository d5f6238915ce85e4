"""hifi.training.hyperparameters: ranges, and the learning rate of each step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.errors import InvalidArgumentError
from hifi.training.hyperparameters import Hyperparameters


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("epochs", (0, -1, 1.5, "3", True, None)),
            ("batch_size", (0, 2.0)),
            ("max_length", (0, None)),
            ("seed", (-1, 2**63, 0.5)),
            ("early_stopping_patience", (0, -1, 1.5)),
            ("learning_rate", (0, -1e-3, math.nan, math.inf, "1e-3", True)),
            ("weight_decay", (-0.1, math.nan, math.inf)),
            ("warmup_ratio", (-0.1, 1.1, math.nan)),
        ],
    )
    def test_a_value_outside_is_named_with_the_limit(self, name: str, values: tuple):
        for value in values:
            with pytest.raises(InvalidArgumentError) as caught:
                Hyperparameters(**{name: value})
            assert caught.value.param == name
            assert caught.value.limit

    def test_the_edges_are_inside(self):
        Hyperparameters(epochs=1, batch_size=1, max_length=1, seed=0, warmup_ratio=0)
        Hyperparameters(seed=2**63 - 1, warmup_ratio=1.0, weight_decay=0, early_stopping_patience=1)

    def test_the_defaults_are_those_of_a_job_spec(self):
        assert Hyperparameters().describe() == {
            "epochs": 3,
            "learning_rate": 3e-4,
            "batch_size": 32,
            "max_length": 128,
            "warmup_ratio": 0.06,
            "weight_decay": 0.01,
            "seed": 0,
            "precision": "auto",
            "early_stopping_patience": None,
        }


class TestLearningRate:
    def test_rises_and_falls_linearly(self):
        settings = Hyperparameters(learning_rate=1.0, warmup_ratio=0.2)
        rates = [settings.learning_rate_at(step, total_steps=10) for step in range(10)]
        assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])

    @given(total=st.integers(1, 200), ratio=st.floats(0, 1))
    def test_every_step_learns_and_the_peak_is_the_given_rate(self, total: int, ratio: float):
        settings = Hyperparameters(learning_rate=0.5, warmup_ratio=ratio)
        rates = [settings.learning_rate_at(step, total_steps=total) for step in range(total)]
        assert min(rates) > 0
        assert max(rates) == 0.5
        peak = rates.index(0.5)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
