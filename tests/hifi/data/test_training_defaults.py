"""hifi.data.training_defaults: epochs and learning rate where the settings leave them open."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hifi import finetune
from hifi.data.settings import Hyperparameters
from hifi.data.training_defaults import (
    LEAST_STEPS,
    RATE_TIMES_WIDTH,
    choose_learning_rate,
    parse_learning_rate,
)
from hifi.errors import InvalidArgumentError
from tests.root import ROOT

WIDTH = 384


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
        assert settings.describe(rows=rows, hidden_size=WIDTH)["epochs"] == epochs

    def test_a_given_number_stands(self):
        settings = Hyperparameters(epochs=2)
        assert (settings.count_epochs(rows=5), settings.count_steps(rows=40)) == (2, 4)


class TestLearningRate:
    def test_a_given_one_stands(self):
        settings = Hyperparameters(learning_rate=np.float32(0.25))
        assert settings.peak_rate(hidden_size=WIDTH) == 0.25
        assert settings.describe(rows=5, hidden_size=WIDTH)["learning_rate"] == 0.25

    def test_auto_falls_with_the_width(self):
        settings = Hyperparameters()
        assert settings.learning_rate == "auto"
        rates = [settings.peak_rate(hidden_size=width) for width in (WIDTH, 2 * WIDTH)]
        assert rates == [choose_learning_rate(hidden_size=WIDTH), rates[0] / 2]
        assert 1e-4 < rates[0] < 1e-2
        assert settings.describe(rows=5, hidden_size=WIDTH)["learning_rate"] == rates[0]

    def test_the_text_of_an_option_may_be_a_number(self):
        assert parse_learning_rate("3e-4") == 3e-4
        assert parse_learning_rate("auto") == "auto"
        with pytest.raises(InvalidArgumentError, match="above 0, or 'auto'"):
            Hyperparameters(learning_rate=parse_learning_rate("fast"))


class TestChoice:
    """What is written down of the settings that may be left open."""

    def test_is_what_they_become(self):
        chosen = Hyperparameters(batch_size=8).choose(rows=16, hidden_size=WIDTH)
        assert chosen == {
            "epochs": LEAST_STEPS // 2,
            "learning_rate": choose_learning_rate(hidden_size=WIDTH),
        }

    def test_is_what_was_given(self):
        given = {"epochs": 2, "learning_rate": 1e-3}
        assert Hyperparameters(**given).choose(rows=16, hidden_size=WIDTH) == given

    def test_holds_what_is_known_alone(self):
        assert Hyperparameters().choose(rows=16, hidden_size=None).keys() == {"epochs"}
        assert Hyperparameters().choose(rows=None, hidden_size=WIDTH).keys() == {"learning_rate"}
        assert Hyperparameters().choose(rows=None, hidden_size=None) == {}


class TestDocumentation:
    def test_has_the_numbers_of_the_code(self):
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        service = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
        for text in (finetune.__doc__ or "", readme, service):
            words = " ".join(text.split())
            assert f" {LEAST_STEPS} steps" in words
            assert f"is {RATE_TIMES_WIDTH} over the backbone's hidden size" in words
