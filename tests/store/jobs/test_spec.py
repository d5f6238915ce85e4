"""store.jobs.spec: the accepted fields of a job spec."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from hifi.data.task_types import PLANNED, task_types
from store.jobs.spec import HubDataset, JobSpec

LEAST: dict[str, Any] = {"model": "all-MiniLM-L6-v2", "dataset": "ds_1"}

# As the tables hold one, all choices written down.
STORED: dict[str, Any] = {
    "model": "org/model",
    "dataset": {"hub": "nyu-mll/glue", "config": "mrpc", "revision": "bcdcba79"},
    "task": {
        "type": "classification",
        "text": ["sentence1", "sentence2"],
        "label": "label",
        "image": None,
        "tokens": None,
        "tags": None,
        "spans": None,
        "question": None,
        "context": None,
        "choices": None,
        "answers": None,
        "metric": "f1",
        "threshold": None,
        "stride": None,
    },
    "score": "pagerank",
    "k": 3,
    "budget": None,
    "xi": 0.9,
    "d": 0.85,
    "n_samples": 300,
    "strategy": "layer-wise",
    "teleport": "information",
    "training": {
        "epochs": 3,
        "learning_rate": 0.0003,
        "batch_size": 32,
        "max_length": 128,
        "warmup_ratio": 0.06,
        "weight_decay": 0.01,
        "seed": 0,
        "precision": "auto",
        "early_stopping_patience": None,
        "head_start": "auto",
        "class_weights": None,
        "max_seconds": None,
    },
    "preset": None,
    "name": None,
    "metadata": {"team": "search"},
}


def parse(**changes: Any) -> JobSpec:
    return JobSpec.model_validate_json(json.dumps({**LEAST, **changes}))


class TestDefaults:
    def test_model_and_data_set_are_enough(self):
        spec = parse()
        assert (spec.score, spec.damping, spec.strategy, spec.teleport) == (
            "pagerank",
            0.85,
            "layer-wise",
            "information",
        )
        assert (spec.k, spec.budget, spec.allotment.k) == (None, None, 3)
        assert (spec.xi, spec.n_samples, spec.preset, spec.metadata) == (None, None, None, {})
        left_open = {"epochs": None, "learning_rate": "auto"}
        assert spec.training.model_dump() == {**STORED["training"], **left_open}


class TestPreset:
    def test_fills_what_is_left_open(self):
        spec = parse(preset="paper", k=1, training={"epochs": 5}).filled()
        assert (spec.score, spec.strategy, spec.k) == ("pagerank", "layer-wise", 1)
        training = spec.training
        assert (training.epochs, training.learning_rate, training.head_start) == (5, 2e-4, "random")

    def test_none_changes_nothing(self):
        assert parse().filled() == parse()
        assert JobSpec.model_validate(STORED).filled() == JobSpec.model_validate(STORED)

    def test_leaves_the_spec_as_it_was_written(self):
        spec = parse(preset="paper")
        spec.filled()
        assert (spec.training.head_start, spec.training.epochs) == ("auto", None)


class TestStorage:
    def test_a_stored_spec_is_read_back_unchanged(self):
        assert JobSpec.model_validate(STORED).model_dump(mode="json") == STORED

    def test_a_spec_of_before_there_were_scores_means_the_papers(self):
        later = ("score", "budget", "preset")
        old = {name: value for name, value in STORED.items() if name not in later}
        assert JobSpec.model_validate(old).model_dump(mode="json") == STORED

    def test_starts_with_model_data_set_and_task(self):
        shown = JobSpec.model_validate(STORED).model_dump(mode="json")
        assert list(shown)[:4] == ["model", "dataset", "task", "score"]


class TestSpellings:
    def test_greek_and_long_names(self):
        assert (parse(ξ=0.5).xi, parse(damping=0.5).damping) == (0.5, 0.5)

    def test_two_of_one_thing_are_refused(self):
        for twice in ({"xi": 0.5, "ξ": 0.5}, {"d": 0.5, "damping": 0.5}):
            with pytest.raises(ValidationError, match="Extra inputs"):
                parse(**twice)

    def test_one_text_or_two(self):
        assert parse(task={"text": "a"}).task.text == "a"
        assert parse(task={"text": ["a", "b"]}).task.text == ("a", "b")

    def test_one_label_column_or_several(self):
        for label, columns in (("a", ("a",)), (["a", "b"], ("a", "b"))):
            task = parse(task={"type": "multi-label", "label": label, "threshold": 0.4}).task
            assert (task.label_columns, task.threshold) == (columns, 0.4)

    def test_class_weights_become_floats(self):
        spec = parse(training={"class_weights": {"a": 2}})
        assert json.dumps(spec.training.class_weights) == '{"a": 2.0}'
        assert parse(training={"class_weights": "balanced"}).training.class_weights == "balanced"

    def test_a_hub_data_set(self):
        spec = parse(dataset={"hub": "nyu-mll/glue", "config": "mrpc"})
        assert spec.dataset == HubDataset(hub="nyu-mll/glue", config="mrpc")


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "values"),
        [
            ("model", ["", 5, None, "a\x00", "x" * 257]),
            ("dataset", ["", 5, None, {}, {"hub": ""}, {"hub": "a", "x": 1}]),
            ("k", [0, -1, 1.0, "3", True, 10**30]),
            ("budget", [0, -1, 1.0, "3", True, 10**30]),
            ("score", ["best", 1, None]),
            ("xi", [0, 1, -0.1, "0.9", True]),
            ("d", [-0.1, 1, "0.9", None]),
            ("n_samples", [0, 1.5, True]),
            ("strategy", ["top", 1]),
            ("teleport", ["x"]),
            ("task", [{"type": "x"}, {"text": []}, {"text": ["a", "b", "c"]}, {"x": 1}, []]),
            ("task", [{"label": []}, {"threshold": 0}, {"threshold": 1}, {"threshold": "0.5"}]),
            ("training", [{"epochs": 0}, {"learning_rate": 0}, {"seed": -1}, {"lr": 1}]),
            ("preset", ["papers", "", 1]),
            ("metadata", [{"a": 1}, {"": "a"}, {"a": "\x00"}, {str(n): "" for n in range(17)}]),
            ("name", ["x" * 129, 5]),
            ("unknown", [1]),
        ],
    )
    def test_name_the_field(self, field: str, values: list[Any]):
        for value in values:
            with pytest.raises(ValidationError) as caught:
                parse(**{field: value})
            assert caught.value.errors()[0]["loc"][0] == field

    @pytest.mark.parametrize(
        ("weights", "reason"),
        [
            ("even", "'balanced', or a weight above 0"),
            ({}, "'balanced', or a weight above 0"),
            ([1.0], "'balanced', or a weight above 0"),
            ({"a": 0}, "the weight of 'a' must be a finite number above 0"),
            ({"a": True}, "the weight of 'a' must be a finite number above 0"),
            ({"": 1}, "at least 1 character"),
            ({"x" * 257: 1}, "at most 256 characters"),
            ({"a\x00": 1}, "match pattern"),
            ({str(n): 1 for n in range(101)}, "101 labels have weights: at most 100 may"),
        ],
    )
    def test_of_class_weights_name_the_field_and_not_a_kind_of_it(self, weights, reason: str):
        with pytest.raises(ValidationError) as caught:
            parse(training={"class_weights": weights})
        [error] = caught.value.errors()
        assert error["loc"] == ("training", "class_weights")
        assert reason in error["msg"]

    @pytest.mark.parametrize("rate", ["auto", 1e-3, 1, 1e-300])
    def test_none_of_a_learning_rate_within_its_range(self, rate: object):
        assert parse(training={"learning_rate": rate}).training.learning_rate == rate

    @pytest.mark.parametrize("rate", ["fast", "1e-3", 0, -1, 2, True, None, [1e-3]])
    def test_of_a_learning_rate_name_the_field_and_not_a_kind_of_it(self, rate: object):
        with pytest.raises(ValidationError) as caught:
            parse(training={"learning_rate": rate})
        [error] = caught.value.errors()
        assert error["loc"] == ("training", "learning_rate")
        assert "a number above 0" in error["msg"]
        assert "'auto'" in error["msg"]

    def test_of_a_task_type_offer_only_supported_ones(self):
        with pytest.raises(ValidationError) as caught:
            parse(task={"type": "clasification"})
        [error] = caught.value.errors()
        first = "'classification', 'multi-label', 'regression', 'image-classification'"
        offered = f"{first}, 'token-classification', 'question-answering' or 'multiple-choice'"
        assert error["msg"] == f"Input should be {offered}"
        names = [each.name for each in task_types()]
        schema = JobSpec.model_json_schema()["$defs"]["TaskFields"]["properties"]["type"]
        assert schema["anyOf"][0]["enum"] == names

    def test_leave_planned_task_types_to_the_task(self):
        assert [parse(task={"type": name}).task.type for name in PLANNED] == list(PLANNED)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_a_non_finite_number(self, number: str):
        with pytest.raises(ValidationError):
            JobSpec.model_validate_json(
                f'{{"model": "m", "dataset": "d", "xi": {number}}}',
            )
