"""hifi.data.presets: a preset fills what is left open, and nothing else."""

from __future__ import annotations

import pytest

from hifi.data.presets import fill_from_preset
from hifi.data.settings import Hyperparameters, Scoring, declared
from hifi.errors import InvalidArgumentError

OPEN = {
    name: each.default
    for kind in (Scoring, Hyperparameters)
    for name, each in declared(kind).items()
}


class TestPaper:
    def test_is_the_published_method(self):
        filled = fill_from_preset(OPEN, preset="paper")
        scoring = Scoring(**{name: filled[name] for name in declared(Scoring)})
        training = Hyperparameters(**{name: filled[name] for name in declared(Hyperparameters)})
        assert scoring.describe(rows=1000) == {
            "k": 3,
            "xi": 0.9,
            "d": 0.85,
            "strategy": "layer-wise",
            "teleport": "information",
            "n_samples": 300,
        }
        assert training.choose(rows=10, hidden_size=384) == {"epochs": 3, "learning_rate": 2e-4}
        assert training.head_start == "random"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("k", 1), ("xi", 0.5), ("damping", 0.0), ("strategy", "mid-top")),
            *(("score", "gradient"), ("n_samples", 7), ("epochs", 1), ("learning_rate", 1e-3)),
            *(("head_start", "probe"), ("batch_size", 8), ("precision", "float32")),
        ],
    )
    def test_leaves_what_is_given(self, name: str, value: object):
        paper = fill_from_preset(OPEN, preset="paper")
        assert fill_from_preset({**OPEN, name: value}, preset="paper") == {**paper, name: value}

    def test_adds_no_argument(self):
        given = {"epochs": None, "model": None}
        assert fill_from_preset(given, preset="paper") == {"epochs": 3, "model": None}


class TestName:
    def test_none_changes_nothing(self):
        assert fill_from_preset(OPEN, preset=None) == OPEN

    @pytest.mark.parametrize("name", ["papers", "", "auto", 1, {"paper"}])
    def test_that_is_unknown_is_refused(self, name):
        with pytest.raises(InvalidArgumentError, match="one of paper") as caught:
            fill_from_preset(OPEN, preset=name)
        assert caught.value.param == "preset"
