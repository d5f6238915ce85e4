"""hifi.data.inference: the task that a profile tells, and which field settles a doubt."""

from __future__ import annotations

from typing import Any

import pytest

from hifi.data.inference import (
    METRICS,
    check_certain_task,
    complete_hub_task,
    complete_task,
    count_labels,
)
from hifi.data.profile import ColumnProfile, DatasetProfile, Kind, Problem
from service.datasets.checking.errors import DatasetInvalidError
from service.http.problems import ProblemError
from store.spec import TaskFields


def profile(problems: dict[str, Any] | None = None, **kinds: Kind) -> DatasetProfile:
    columns = [
        ColumnProfile(
            name=name, type=kind, kind=kind, num_classes=2, problems=(problems or {}).get(name, {})
        )
        for name, kind in kinds.items()
    ]
    return DatasetProfile(rows={"train": 10, "validation": 2}, columns=columns)


def said(**fields: Any) -> TaskFields:
    return TaskFields.model_validate(fields)


def error_of(fields: TaskFields, columns: DatasetProfile) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        complete_task(fields, columns)
    assert caught.value.status == 422
    return caught.value


PAIR: dict[str, Kind] = {"sentence1": "text", "sentence2": "text", "label": "integer"}


class TestComplete:
    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            (PAIR, ("classification", ("sentence1", "sentence2"), "label", None, "accuracy")),
            (
                {**PAIR, "label": "float"},
                ("regression", ("sentence1", "sentence2"), "label", None, "pearson"),
            ),
            (
                {"text": "text", "labels": "text"},
                ("classification", ("text",), "labels", None, "accuracy"),
            ),
            (
                {"review": "text", "spam": "boolean", "meta": "other"},
                ("classification", ("review",), "spam", None, "accuracy"),
            ),
            (
                {"pic": "image", "animal": "text"},
                ("image-classification", None, "animal", "pic", "accuracy"),
            ),
        ],
    )
    def test_what_leaves_no_doubt(self, kinds: dict[str, Kind], expected: tuple):
        task = complete_task(said(), profile(**kinds))
        assert (task.type, task.text, task.label, task.image, task.metric) == expected

    def test_what_is_said_is_taken(self):
        task = complete_task(
            said(type="regression", text="sentence2", label="n", metric="spearman"),
            profile(**PAIR, n="integer"),
        )
        assert task == said(
            type="regression", text=["sentence2"], label="n", metric="spearman", image=None
        )

    @pytest.mark.parametrize(
        ("kinds", "param"),
        [
            ({"a": "text", "b": "text"}, "task.label"),
            ({"a": "text", "b": "integer", "c": "float"}, "task.label"),
            ({"a": "text", "b": "text", "c": "text", "label": "integer"}, "task.text"),
            ({"a": "integer", "label": "integer"}, "task.text"),
            ({"a": "image", "b": "image", "label": "integer"}, "task.image"),
            ({"a": "text", "label": "whole"}, "task.type"),
        ],
    )
    def test_a_doubt_names_the_field_that_settles_it(self, kinds: dict[str, Kind], param: str):
        error = error_of(said(), profile(**kinds))
        assert (error.code, error.param) == ("task_ambiguous", param)
        assert error.detail.endswith(f"say which with {param}")
        assert all(repr(name) in error.detail for name in kinds)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"text": "x"}, "task.text"),
            ({"text": ["sentence1", "x"]}, "task.text"),
            ({"label": "x"}, "task.label"),
            ({"image": "x"}, "task.image"),
        ],
    )
    def test_a_column_that_is_not_there(self, fields: dict[str, Any], param: str):
        error = error_of(said(**fields), profile(**PAIR))
        assert (error.code, error.param) == ("column_not_found", param)
        assert "there are: 'sentence1', 'sentence2', 'label'" in error.detail

    @pytest.mark.parametrize(
        "kind", ["question-answering", "multiple-choice", "token-classification", "causal-lm"]
    )
    def test_a_type_that_is_not_built_yet(self, kind: str):
        error = error_of(said(type=kind), profile(**PAIR))
        assert (error.code, error.param) == ("task_not_supported", "task.type")
        assert all(each in error.detail for each in METRICS)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"metric": "pearson"}, "task.metric"),
            ({"type": "regression", "metric": "f1"}, "task.metric"),
            ({"text": ["sentence1", "sentence1"]}, "task.text"),
            ({"text": "sentence1", "image": "sentence2"}, "task.image"),
            ({"text": "sentence1", "label": "sentence1"}, "task.label"),
            ({"type": "image-classification", "text": "sentence1", "label": "label"}, "task.text"),
            ({"type": "classification", "image": "sentence1"}, "task.image"),
        ],
    )
    def test_what_contradicts_itself(self, fields: dict[str, Any], param: str):
        columns = profile(**PAIR)
        if fields.get("type") == "image-classification":
            columns = profile(**PAIR, picture="image")
        error = error_of(said(**fields), columns)
        assert (error.code, error.param) == ("invalid_request", param)

    @pytest.mark.parametrize("kind", ["null", "other"])
    def test_a_label_of_which_nothing_can_be_read(self, kind: Kind):
        error = error_of(said(), profile(text="text", label=kind))
        assert (error.code, error.param) == ("dataset_invalid", "task.label")

    def test_many_columns_are_not_all_listed(self):
        error = error_of(said(), profile(**{f"column{n}": "text" for n in range(1000)}))
        assert len(error.detail) < 1000


class TestRows:
    PROBLEM = Problem(row=7, reason="it is so")

    @pytest.mark.parametrize(
        ("column", "use", "split", "param"),
        [
            ("sentence2", "text", "train", "task.text"),
            ("sentence1", "text", "validation", "task.text"),
            ("label", "label", "train", "task.label"),
            ("label", "label", "validation", "task.label"),
        ],
    )
    def test_of_the_chosen_columns_are_refused(self, column, use, split, param):
        columns = profile({column: {use: {split: self.PROBLEM}}}, **PAIR)
        error = error_of(said(), columns)
        assert isinstance(error, DatasetInvalidError)
        assert (error.code, error.param) == ("dataset_invalid", param)
        assert (error.split, error.row, error.column) == (split, 7, column)
        assert error.detail == f"{split}, row 7, column {column!r}: it is so"

    def test_of_other_columns_and_uses_do_not_matter(self):
        columns = profile(
            {
                "sentence1": {"text": {"train": self.PROBLEM}},
                "label": {"target": {"train": self.PROBLEM}, "text": {"train": self.PROBLEM}},
                "sentence2": {"text": {"test": self.PROBLEM}},
            },
            **PAIR,
        )
        assert complete_task(said(text="sentence2"), columns).label == "label"

    def test_of_a_kind_that_cannot_be_used(self):
        error = error_of(said(text="n"), profile(text="text", n="integer", label="integer"))
        assert "a text column is needed, this one holds integer" in error.detail

    def test_a_wrong_metric_comes_before_wrong_texts_and_after_wrong_labels(self):
        for column, use, code in (
            ("sentence1", "text", "invalid_request"),
            ("label", "label", "dataset_invalid"),
        ):
            columns = profile({column: {use: {"train": self.PROBLEM}}}, **PAIR)
            assert error_of(said(metric="pearson"), columns).code == code


class TestCertain:
    PROBLEM = Problem(row=7, reason="it is so")

    @pytest.mark.parametrize(
        ("kinds", "column"),
        [
            (PAIR, "sentence1"),
            ({"a": "text", "n": "float"}, "a"),
            ({"p": "image", "n": "text"}, "p"),
        ],
    )
    def test_is_checked_at_the_door(self, kinds: dict[str, Kind], column: str):
        use = "image" if kinds[column] == "image" else "text"
        for split in ("train", "validation", "test"):
            columns = profile({column: {use: {split: self.PROBLEM}}}, **kinds)
            with pytest.raises(DatasetInvalidError) as caught:
                check_certain_task(columns)
            assert (caught.value.param, caught.value.row) == (split, 7)

    def test_a_label_by_name_alone_is_told_how_to_be_none(self):
        columns = profile({"label": {"label": {"train": self.PROBLEM}}}, **PAIR)
        with pytest.raises(DatasetInvalidError, match="rename it where another one is meant"):
            check_certain_task(columns)

    @pytest.mark.parametrize(
        "kinds",
        [
            {"a": "text", "b": "text"},
            {"a": "text", "b": "text", "id": "integer"},
            {"a": "text", "label": "other"},
            {"a": "text", "label": "whole"},
            {"a": "text"},
        ],
    )
    def test_a_doubt_is_left_to_the_job(self, kinds: dict[str, Kind]):
        every = {
            use: dict.fromkeys(("train", "validation", "test"), self.PROBLEM)
            for use in ("text", "label", "target")
        }
        check_certain_task(profile(dict.fromkeys(kinds, every), **kinds))

    def test_labels_of_tests_do_not_matter(self):
        check_certain_task(profile({"label": {"label": {"test": self.PROBLEM}}}, **PAIR))


class TestHub:
    def test_takes_what_is_said(self):
        assert complete_hub_task(said()) == said()
        assert complete_hub_task(said(type="regression")).metric == "pearson"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"type": "causal-lm"}, "task.type"),
            ({"type": "regression", "metric": "f1"}, "task.metric"),
            ({"type": "regression", "image": "x"}, "task.image"),
            ({"type": "image-classification", "text": "x"}, "task.text"),
            ({"text": "x", "label": "x"}, "task.label"),
        ],
    )
    def test_refuses_what_cannot_be(self, fields: dict[str, Any], param: str):
        with pytest.raises(ProblemError) as caught:
            complete_hub_task(said(**fields))
        assert caught.value.param == param


class TestLabels:
    def test_are_counted(self):
        columns = profile(**PAIR)
        assert count_labels(said(type="classification", label="label"), columns) == 2
        assert count_labels(said(type="regression", label="label"), columns) == 1


class TestProfile:
    def test_is_plain_json_and_back(self):
        columns = profile({"label": {"label": {"train": Problem(row=None, reason="x")}}}, **PAIR)
        assert DatasetProfile.from_json(columns.to_json()) == columns
