"""hifi.data.inference: the task inferred from a profile, and how ambiguities are resolved."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hifi.data.inference import (
    check_certain_task,
    check_unseen_task,
    complete_task,
    count_labels,
    infer_label,
    infer_task,
)
from hifi.data.profile import DatasetProfile, Kind, Problem
from hifi.data.spec import TaskSpec
from hifi.data.task_types import task_types
from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    HifiError,
    InvalidArgumentError,
    MissingColumnError,
    TaskNotSupportedError,
)
from tests.hifi.data.profiles import PAIR, profile


def said(**fields: Any) -> TaskSpec:
    return TaskSpec.of(fields)


def error_of(spec: TaskSpec, columns: DatasetProfile) -> Any:
    with pytest.raises(HifiError) as caught:
        complete_task(spec, columns)
    return caught.value


def with_labels(kinds: dict[str, Any], *, rows: int, **counts: int) -> DatasetProfile:
    """Make a profile in which these columns have as many different values."""
    made = profile(**kinds)
    columns = [replace(column, num_classes=counts.get(column.name, 2)) for column in made.columns]
    return replace(made, rows={"train": rows}, columns=columns)


class TestUniqueTexts:
    def test_are_not_the_label_although_the_column_is_called_so(self):
        columns = with_labels({"text": "text", "label": "text"}, rows=20, label=20, text=20)
        error = error_of(TaskSpec(), columns)
        assert isinstance(error, AmbiguousTaskError)
        assert error.param == "label"
        assert "every row has another text in 'label'" in str(error)
        assert complete_task(said(label="label", text="text"), columns).type == "classification"

    def test_beside_images_are_not_the_label(self):
        kinds = {"image": "image", "file": "text", "digit": "integer"}
        columns = with_labels(kinds, rows=20, file=20)
        assert complete_task(TaskSpec(), columns).label == "digit"
        only = with_labels({"image": "image", "file": "text"}, rows=20, file=20)
        assert error_of(TaskSpec(), only).param == "label"

    @pytest.mark.parametrize(("rows", "count"), [(20, 19), (9, 9)])
    def test_others_are(self, rows: int, count: int):
        columns = with_labels({"text": "text", "label": "text"}, rows=rows, label=count)
        assert complete_task(TaskSpec(), columns).label == "label"


class TestInfer:
    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            (PAIR, ("classification", ("sentence1", "sentence2"), "label", None, "accuracy")),
            (
                {**PAIR, "idx": "integer"},
                ("classification", ("sentence1", "sentence2"), "label", None, "accuracy"),
            ),
            (
                {**PAIR, "label": "float"},
                ("regression", ("sentence1", "sentence2"), "label", None, "pearson"),
            ),
            (
                {"text": "text", "label": "text"},
                ("classification", ("text",), "label", None, "accuracy"),
            ),
            (
                {"labels": "text", "text": "text"},
                ("classification", ("text",), "labels", None, "accuracy"),
            ),
            (
                {"review": "text", "stars": "integer"},
                ("classification", ("review",), "stars", None, "accuracy"),
            ),
            (
                {"review": "text", "stars": "float"},
                ("regression", ("review",), "stars", None, "pearson"),
            ),
            (
                {"review": "text", "spam": "boolean", "meta": "other"},
                ("classification", ("review",), "spam", None, "accuracy"),
            ),
            (
                {"image": "image", "label": "integer"},
                ("image-classification", (), "label", "image", "accuracy"),
            ),
            (
                {"pic": "image", "animal": "text"},
                ("image-classification", (), "animal", "pic", "accuracy"),
            ),
            (
                {"pic": "image", "n": "integer"},
                ("image-classification", (), "n", "pic", "accuracy"),
            ),
            (
                {"pic": "image", "caption": "text", "label": "integer"},
                ("image-classification", (), "label", "pic", "accuracy"),
            ),
        ],
    )
    def test_an_unambiguous_task_is_inferred(self, kinds: dict[str, Kind], expected: tuple):
        task = complete_task(said(), profile(**kinds))
        assert (task.type, task.text, task.label, task.image, task.metric) == expected

    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "regression", "text": "sentence2", "label": "n", "metric": "spearman"},
            {"label": "n"},
            {"text": "sentence2"},
            {"type": "regression"},
            {"metric": "f1"},
            {"type": "classification", "text": ["sentence1"], "label": "sentence2"},
        ],
    )
    def test_given_arguments_are_used(self, fields: dict[str, Any]):
        task = complete_task(said(**fields), profile(**PAIR, n="integer"))
        for name, value in vars(said(**fields)).items():
            if value:
                assert getattr(task, name) == value

    def test_texts_are_preferred_over_images(self):
        columns = profile(pic="image", caption="text", label="integer")
        assert infer_task(said(text="caption"), columns).type == "classification"
        assert infer_task(said(type="classification"), columns).text == ("caption",)

    @pytest.mark.parametrize(
        ("kinds", "param"),
        [
            ({"a": "text", "b": "text"}, "label"),
            ({"a": "text", "b": "integer", "c": "float"}, "label"),
            ({"a": "image", "b": "text", "c": "text"}, "label"),
            ({"a": "text", "b": "text", "c": "text", "label": "integer"}, "text"),
            ({"a": "integer", "label": "integer"}, "text"),
            ({"a": "image", "b": "image", "label": "integer"}, "image"),
            ({"a": "text", "label": "whole"}, "task"),
        ],
    )
    def test_an_ambiguity_names_the_argument_to_set(self, kinds: dict[str, Kind], param: str):
        error = error_of(said(), profile(**kinds))
        assert isinstance(error, AmbiguousTaskError)
        assert (error.param, error.split) == (param, "train")
        assert str(error).endswith(f"choose with {param}=…")
        assert all(repr(name) in error.doubt for name in kinds)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"text": "x"}, "text"),
            ({"text": ["sentence1", "x"]}, "text"),
            ({"label": "x"}, "label"),
            ({"image": "x"}, "image"),
        ],
    )
    def test_a_column_that_is_not_there(self, fields: dict[str, Any], param: str):
        error = error_of(said(**fields), profile(**PAIR))
        assert isinstance(error, MissingColumnError)
        assert (error.param, error.column) == (param, "x")
        assert "the columns are: 'sentence1', 'sentence2', 'label'" in error.reason

    @pytest.mark.parametrize("kind", ["causal-lm"])
    def test_a_type_that_is_not_built_yet(self, kind: str):
        error = error_of(said(type=kind), profile(**PAIR))
        assert isinstance(error, TaskNotSupportedError)
        assert all(each.name in str(error) for each in task_types())

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"metric": "pearson"}, "metric"),
            ({"type": "regression", "metric": "f1"}, "metric"),
            ({"type": "image-classification", "text": "sentence1", "label": "label"}, "text"),
            ({"type": "classification", "image": "picture"}, "image"),
            ({"type": "regression", "image": "picture", "label": "label"}, "image"),
        ],
    )
    def test_an_input_that_the_type_does_not_have(self, fields: dict[str, Any], param: str):
        error = error_of(said(**fields), profile(**PAIR, picture="image"))
        assert isinstance(error, InvalidArgumentError)
        assert error.param == param

    @pytest.mark.parametrize("kind", ["null", "other"])
    def test_a_label_column_of_an_unusable_type(self, kind: Kind):
        error = error_of(said(), profile(text="text", label=kind))
        assert not isinstance(error, AmbiguousTaskError)
        assert (error.param, error.column) == ("label", "label")
        assert error.reason == f"a column of {kind} cannot be the label"

    @pytest.mark.parametrize(
        ("kinds", "label"),
        [
            ({"text": "text", "n": "whole"}, "n"),
            ({"a": "text", "b": "text", "c": "text", "label": "text"}, "label"),
            ({"a": "image", "b": "image", "animal": "text"}, "animal"),
            ({"text": "text", "m": "integer", "n": "integer"}, None),
            ({"a": "text", "b": "text"}, None),
        ],
    )
    def test_a_label_may_be_certain_alone(self, kinds: dict[str, Kind], label: str | None):
        columns = profile(**kinds)
        with pytest.raises(AmbiguousTaskError):
            infer_task(TaskSpec(), columns)
        assert infer_label(columns) == label

    def test_many_columns_are_not_all_listed(self):
        error = error_of(said(), profile(**{f"column{n}": "text" for n in range(1000)}))
        assert len(str(error)) < 1000


def unlabelled(columns: DatasetProfile) -> DatasetProfile:
    """Return the profile of a data set whose test split has no labels."""
    changed = [replace(each, test_unlabelled=each.name == "label") for each in columns.columns]
    return replace(columns, columns=changed)


class TestRows:
    PROBLEM = Problem(row=7, reason="it is so")

    @pytest.mark.parametrize(
        ("column", "use", "split", "param"),
        [
            ("sentence2", "text", "train", "text"),
            ("sentence1", "text", "validation", "text"),
            ("label", "label", "train", "label"),
            ("label", "label", "validation", "label"),
            ("sentence1", "text", "test", "text"),
            ("label", "label", "test", "label"),
        ],
    )
    def test_of_the_chosen_columns_are_refused(self, column, use, split, param):
        columns = profile({column: {use: {split: self.PROBLEM}}}, **PAIR)
        error = error_of(said(), columns)
        assert isinstance(error, DataError)
        assert error.param == param
        assert (error.split, error.row, error.column) == (split, 7, column)
        assert str(error) == f"{split}, row 7, column {column!r}: it is so"

    def test_of_a_test_split_without_labels_do_not_matter(self):
        problems = {"label": {"test": self.PROBLEM}, "text": {"test": self.PROBLEM}}
        columns = unlabelled(profile(dict.fromkeys(PAIR, problems), **PAIR))
        assert complete_task(said(), columns).label == "label"

    def test_of_a_test_split_are_left_to_training_by_a_profile_of_an_earlier_version(self):
        problems = {"label": {"test": self.PROBLEM}, "text": {"test": self.PROBLEM}}
        document = profile(dict.fromkeys(PAIR, problems), **PAIR).to_json()
        assert isinstance(error_of(said(), DatasetProfile.from_json(document)), DataError)
        for entry in document["columns"]:
            del entry["test_unlabelled"]
        assert complete_task(said(), DatasetProfile.from_json(document)).label == "label"

    def test_of_other_columns_and_uses_do_not_matter(self):
        columns = profile(
            {
                "sentence1": {"text": {"train": self.PROBLEM}},
                "label": {"target": {"train": self.PROBLEM}, "text": {"train": self.PROBLEM}},
                "sentence2": {"image": {"test": self.PROBLEM}},
            },
            **PAIR,
        )
        assert complete_task(said(text="sentence2"), columns).label == "label"

    def test_of_a_kind_that_cannot_be_used(self):
        error = error_of(said(text="n"), profile(text="text", n="integer", label="integer"))
        assert "a text column is needed, this one holds integer" in error.reason

    def test_a_wrong_metric_comes_before_wrong_texts_and_after_wrong_labels(self):
        for column, use, kind in (
            ("sentence1", "text", InvalidArgumentError),
            ("label", "label", DataError),
        ):
            columns = profile({column: {use: {"train": self.PROBLEM}}}, **PAIR)
            assert type(error_of(said(metric="pearson"), columns)) is kind


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
    def test_is_checked_at_upload(self, kinds: dict[str, Kind], column: str):
        use = "image" if kinds[column] == "image" else "text"
        for split in ("train", "validation", "test"):
            columns = profile({column: {use: {split: self.PROBLEM}}}, **kinds)
            with pytest.raises(DataError) as caught:
                check_certain_task(columns)
            assert (caught.value.split, caught.value.row) == (split, 7)

    def test_a_label_found_by_name_alone_says_how_to_override_it(self):
        columns = profile({"label": {"label": {"train": self.PROBLEM}}}, **PAIR)
        with pytest.raises(DataError, match="rename it if it is not one"):
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
    def test_an_ambiguity_is_left_to_the_job(self, kinds: dict[str, Kind]):
        every = {
            use: dict.fromkeys(("train", "validation", "test"), self.PROBLEM)
            for use in ("text", "label", "target")
        }
        check_certain_task(profile(dict.fromkeys(kinds, every), **kinds))

    def test_labels_that_a_test_split_lacks_do_not_matter_but_its_texts_do(self):
        problems = {"label": {"label": {"test": self.PROBLEM}}}
        with pytest.raises(DataError, match="test, row 7"):
            check_certain_task(profile(problems, **PAIR))
        check_certain_task(unlabelled(profile(problems, **PAIR)))
        texts = profile({"sentence2": {"text": {"test": self.PROBLEM}}}, **PAIR)
        with pytest.raises(DataError, match="test, row 7, column 'sentence2'"):
            check_certain_task(unlabelled(texts))


class TestUnseen:
    def test_accepts_given_arguments(self):
        assert check_unseen_task(said()) == said()
        assert check_unseen_task(said(type="regression")).metric == "pearson"

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"type": "causal-lm"}, TaskNotSupportedError),
            ({"type": "regression", "metric": "f1"}, InvalidArgumentError),
            ({"type": "regression", "image": "x"}, InvalidArgumentError),
            ({"type": "image-classification", "text": "x"}, InvalidArgumentError),
        ],
    )
    def test_refuses_impossible_arguments(self, fields: dict[str, Any], error: type[HifiError]):
        with pytest.raises(error):
            check_unseen_task(said(**fields))


class TestLabels:
    def test_are_counted(self):
        columns = profile(**PAIR)
        assert count_labels(said(type="classification", label="label"), columns) == 2
        assert count_labels(said(type="regression", label="label"), columns) == 1

    def test_of_unprofiled_data_are_known_for_numbers(self):
        assert count_labels(said(type="regression"), None) == 1
        assert count_labels(said(type="classification"), None) is None
        assert count_labels(said(), None) is None


class TestProfile:
    def test_is_plain_json_and_back(self):
        columns = profile({"label": {"label": {"train": Problem(row=None, reason="x")}}}, **PAIR)
        for each in (columns, unlabelled(columns)):
            assert DatasetProfile.from_json(json.loads(json.dumps(each.to_json()))) == each

    def test_of_an_earlier_version_keeps_what_is_unknown(self):
        document = profile(**PAIR).to_json()
        for entry in document["columns"]:
            del entry["test_unlabelled"]
        columns = DatasetProfile.from_json(document)
        assert [each.test_unlabelled for each in columns.columns] == [None] * len(PAIR)
        assert columns.to_json() == document
