"""hifi.data.settings: the declared ranges and defaults are enforced."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

from hifi import finetune
from hifi.data.settings import Hyperparameters, RunSettings, Score, Scoring, Setting, declared
from hifi.errors import InvalidArgumentError
from hifi.selection import select_heads


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("epochs", (0, -1, 1.5, "3", True)),
            ("batch_size", (0, 2.0)),
            ("max_length", (0, None)),
            ("seed", (-1, 2**63, 0.5)),
            ("early_stopping_patience", (0, -1, 1.5)),
            ("learning_rate", (0, -1e-3, math.nan, math.inf, "1e-3", "fast", True, None)),
            ("weight_decay", (-0.1, math.nan, math.inf)),
            ("warmup_ratio", (-0.1, 1.1, math.nan)),
            ("precision", ("float16", None)),
            ("class_weights", ("even", {}, {"a": 0}, {"a": "2"}, [1.0], 2.0)),
            ("k", (0, 1.0)),
            ("budget", (0, 1.0, 5)),  # 5 is none of layer-wise
            ("score", ("best", None)),
            ("xi", (0, 1, -0.1, "0.9", True)),
            ("damping", (-0.1, 1, None)),
            ("n_samples", (0, -1, 2.0, True)),
            ("strategy", ("top", None)),
            ("teleport", ("x", None)),
        ],
    )
    def test_a_value_outside_is_named_with_the_limit(self, name: str, values: tuple):
        for value in values:
            with pytest.raises(InvalidArgumentError) as caught:
                (Scoring if name in declared(Scoring) else Hyperparameters)(**{name: value})
            assert caught.value.param == name
            assert caught.value.limit

    def test_the_edges_are_inside(self):
        Hyperparameters(epochs=1, batch_size=1, max_length=1, seed=0, warmup_ratio=0)
        Hyperparameters(seed=2**63 - 1, warmup_ratio=1.0, weight_decay=0, early_stopping_patience=1)
        Scoring(k=1, damping=0, n_samples=1)
        Hyperparameters(class_weights={"a": 1e-300, "b": 1e300})

    def test_numbers_of_any_type_become_plain(self):
        scoring = Scoring(k=np.int64(2), xi=np.float32(0.5), damping=0)
        assert [type(value) for value in (scoring.k, scoring.xi, scoring.damping)] == [
            *(int, float, float)
        ]

    @pytest.mark.parametrize(
        ("name", "value", "limit"),
        [
            ("xi", 1, "a number in (0, 1)"),
            ("damping", 1, "a number in [0, 1)"),
            ("teleport", "x", "one of information, uniform"),
            ("n_samples", 0, "an integer from 1"),
        ],
    )
    def test_limits_are_described_in_words(self, name: str, value: object, limit: str):
        with pytest.raises(InvalidArgumentError) as caught:
            Scoring(**{name: value})
        assert caught.value.limit == limit

    @pytest.mark.parametrize(
        ("name", "limit"),
        [
            ("learning_rate", "a number above 0, or 'auto'"),
            ("warmup_ratio", "a number from 0 to 1"),
            ("weight_decay", "a number of at least 0"),
        ],
    )
    def test_limits_of_hyperparameters_are_described_in_words(self, name: str, limit: str):
        with pytest.raises(InvalidArgumentError) as caught:
            Hyperparameters(**{name: -1})
        assert caught.value.limit == limit

    def test_who_unpacks_a_setting_gets_the_range_of_a_server(self):
        assert list(Setting("x", ge=1, most=9)) == [Ge(1), Le(9)]
        assert list(Setting("x", gt=0, lt=1)) == [Gt(0), Lt(1)]


class TestSamples:
    @pytest.mark.parametrize(
        ("asked", "rows", "n"), [(None, 5000, 300), (None, 7, 7), (7, 7, 7), (1, 9, 1)]
    )
    def test_by_default_there_are_300_or_all(self, asked: int | None, rows: int, n: int):
        assert Scoring(n_samples=asked).count_samples(rows=rows) == n

    def test_more_than_there_are_is_refused(self):
        with pytest.raises(InvalidArgumentError, match=r"n_samples=8.*1 to the 7 rows of train"):
            Scoring(n_samples=8).count_samples(rows=7)


class TestDescription:
    def test_holds_what_a_default_stands_for_under_the_written_names(self):
        assert Scoring().describe(rows=10) == {
            "k": 3,
            "xi": 0.9,
            "d": 0.85,
            "n_samples": 10,
            "strategy": "layer-wise",
            "teleport": "information",
        }

    def test_names_score_and_budget_where_they_are_not_the_papers(self):
        scoring = Scoring(score="gradient", strategy="budget", budget=np.int64(18))
        described = scoring.describe(rows=10)
        expected = {"score": "gradient", "strategy": "budget", "budget": 18, "k": None}
        assert {name: described[name] for name in expected} == expected


class TestDtype:
    @pytest.mark.parametrize("score", ["gradient", "gradient-ratio"])
    def test_a_gradient_needs_32_bits(self, score: Score):
        for dtype in ("float32", "float64"):
            Scoring(score=score).check_dtype(dtype)
        for dtype in ("bfloat16", "float16"):
            with pytest.raises(InvalidArgumentError, match=rf"score=.*these are {dtype}"):
                Scoring(score=score).check_dtype(dtype)

    def test_other_scores_take_any(self):
        for score in ("pagerank", "information", "output-norm", "random"):
            Scoring(score=score).check_dtype("bfloat16")


class TestDeclarations:
    def test_a_class_declares_by_its_annotations_alone(self):
        @dataclass(frozen=True, kw_only=True)
        class Toys(RunSettings):
            size: Annotated[int, Setting("how big", ge=2)] = 4

        size = declared(Toys)["size"]
        assert (size.type, size.default, size.help) == (int, 4, "how big (default: 4)")
        with pytest.raises(InvalidArgumentError, match="size=1"):
            Toys(size=1)

    @pytest.mark.parametrize("call", [finetune, select_heads])
    def test_every_setting_is_an_argument_with_its_default(self, call):
        arguments = inspect.signature(call).parameters
        kinds = (Scoring, Hyperparameters) if call is finetune else (Scoring,)
        settings = {name: each for kind in kinds for name, each in declared(kind).items()}
        if call is select_heads:
            settings.pop("n_samples")  # its caller draws the batches
        assert {name: arguments[name].default for name in settings} == {
            name: each.default for name, each in settings.items()
        }
