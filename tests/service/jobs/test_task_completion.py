"""service.jobs.task_completion: completed tasks, and refusals that name the field of the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hifi.data.profile import DatasetProfile, Kind, Problem
from hifi.data.task_types import task_types
from service.datasets.checking.errors import DatasetInvalidError
from service.http.problems import ProblemError
from service.jobs.task_completion import complete_task, complete_unseen_task, count_labels
from store.jobs.spec import TaskFields
from tests.hifi.data.files import convert_here, write
from tests.hifi.data.profiles import PAIR, profile


def said(**fields: Any) -> TaskFields:
    return TaskFields.model_validate(fields)


def error_of(fields: TaskFields, columns: DatasetProfile) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        complete_task(fields, columns)
    assert caught.value.status == 422
    return caught.value


class TestComplete:
    def test_an_unambiguous_task_is_inferred(self):
        assert complete_task(said(), profile(**PAIR)) == said(
            type="classification",
            text=["sentence1", "sentence2"],
            label="label",
            metric="accuracy",
        )
        assert complete_task(said(), profile(pic="image", animal="text")) == said(
            type="image-classification", image="pic", label="animal", metric="accuracy"
        )

    def test_given_arguments_are_used(self):
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
            ({"a": "integer", "label": "integer"}, "task.text"),
            ({"a": "image", "b": "image", "label": "integer"}, "task.image"),
            ({"a": "text", "label": "whole"}, "task.type"),
        ],
    )
    def test_an_ambiguity_names_the_field_to_set(self, kinds: dict[str, Kind], param: str):
        error = error_of(said(), profile(**kinds))
        assert (error.code, error.param) == ("task_ambiguous", param)
        assert error.detail.endswith(f"set {param}")
        assert all(repr(name) in error.detail for name in kinds)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"text": "x"}, "task.text"),
            ({"label": "x"}, "task.label"),
            ({"image": "x"}, "task.image"),
        ],
    )
    def test_a_column_that_is_not_there(self, fields: dict[str, Any], param: str):
        error = error_of(said(**fields), profile(**PAIR))
        assert (error.code, error.param) == ("column_not_found", param)
        assert "the columns are: 'sentence1', 'sentence2', 'label'" in error.detail

    def test_a_type_that_is_not_built_yet(self):
        error = error_of(said(type="causal-lm"), profile(**PAIR))
        assert (error.code, error.param) == ("task_not_supported", "task.type")
        assert all(each.name in error.detail for each in task_types())

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
    def test_contradictory_fields(self, fields: dict[str, Any], param: str):
        columns = profile(**PAIR)
        if fields.get("type") == "image-classification":
            columns = profile(**PAIR, picture="image")
        error = error_of(said(**fields), columns)
        assert (error.code, error.param) == ("invalid_request", param)
        assert error.detail.startswith(f"{param}=")

    @pytest.mark.parametrize("kind", ["null", "other"])
    def test_a_label_column_of_an_unusable_type(self, kind: Kind):
        error = error_of(said(), profile(text="text", label=kind))
        assert (error.code, error.param) == ("dataset_invalid", "task.label")

    def test_rows_that_cannot_be_used(self):
        problem = Problem(row=7, reason="it is so")
        error = error_of(said(), profile({"sentence2": {"text": {"train": problem}}}, **PAIR))
        assert isinstance(error, DatasetInvalidError)
        assert (error.code, error.param) == ("dataset_invalid", "task.text")
        assert error.extra == {"split": "train", "row": 7, "line": None, "column": "sentence2"}
        assert error.detail == "train, row 7, column 'sentence2': it is so"

    def test_rows_of_a_text_file_have_their_line(self, tmp_path: Path):
        content = 'one,two,label\n"a\nb",x,0\n\nc,,1\n'  # a row of two lines, and a blank line
        columns = convert_here(tmp_path, train=write(tmp_path / "a.csv", content)).profile
        error = error_of(said(text="two", label="label"), columns)
        assert error.extra == {"split": "train", "row": 2, "line": 5, "column": "two"}
        assert error.detail == "train, row 2 (line 5), column 'two': the text is empty"

    def test_labels_are_counted(self):
        columns = profile(**PAIR)
        assert count_labels(complete_task(said(), columns), columns) == 2


class TestUnseen:
    def test_accepts_given_arguments(self):
        assert complete_unseen_task(said()) == said()
        assert complete_unseen_task(said(text="x")) == said(text="x")
        assert complete_unseen_task(said(type="regression")).metric == "pearson"

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
    def test_refuses_impossible_arguments(self, fields: dict[str, Any], param: str):
        with pytest.raises(ProblemError) as caught:
            complete_unseen_task(said(**fields))
        assert caught.value.param == param
