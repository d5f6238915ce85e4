"""hifi.data.schedule: epochs and learning rate where the settings leave them open."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hifi.data.schedule import LEAST_STEPS, parse_learning_rate
from hifi.data.settings import Hyperparameters
from hifi.errors import InvalidArgumentError


class TestEpochs:
    @pytest.mark.parametrize(
        ("rows", "batch_size", "epochs"),
        [
            (32 * LEAST_STEPS, 32, 3),
            (32 * LEAST_STEPS // 4, 32, 4),
            (64, 32, LEAST_STEPS // 2),
            (65, 32, math.ceil(LEAST_STEPS / 3)),
            (5, 32, LEAST_STEPS),
        ],
    )
    def test_are_three_or_as_many_as_make_enough_steps(
        self, rows: int, batch_size: int, epochs: int
    ):
        settings = Hyperparameters(batch_size=batch_size)
        assert settings.count_epochs(rows=rows) == epochs
        assert settings.count_steps(rows=rows) == epochs * math.ceil(rows / batch_size)
        assert settings.describe(rows=rows)["epochs"] == epochs

    def test_a_given_number_stands(self):
        settings = Hyperparameters(epochs=2)
        assert (settings.count_epochs(rows=5), settings.count_steps(rows=40)) == (2, 4)


class TestLearningRate:
    def test_a_given_one_stands(self):
        settings = Hyperparameters(learning_rate=np.float32(0.25))
        assert settings.peak_rate(rows=5) == 0.25
        assert settings.describe(rows=5)["learning_rate"] == 0.25

    def test_auto_becomes_a_number(self):
        settings = Hyperparameters()
        assert settings.learning_rate == "auto"
        assert 1e-4 < settings.peak_rate(rows=5) < 1e-2
        assert settings.describe(rows=5)["learning_rate"] == settings.peak_rate(rows=5)

    def test_the_text_of_an_option_may_be_a_number(self):
        assert parse_learning_rate("3e-4") == 3e-4
        assert parse_learning_rate("auto") == "auto"
        with pytest.raises(InvalidArgumentError, match="above 0, or 'auto'"):
            Hyperparameters(learning_rate=parse_learning_rate("fast"))
