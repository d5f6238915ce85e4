"""hifi.data.label_sets: what a profile knows of lists of labels, and of columns of 0 and 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hifi.data.columns import profile_split
from hifi.data.inference import class_labels, complete_task, count_labels, infer_task
from hifi.data.profile import ColumnProfile, DatasetProfile
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split
from hifi.errors import AmbiguousTaskError, DataError, InvalidArgumentError

TEXTS = ["w1", "w2", "w3"]


def profile_of(**columns: list[Any]) -> DatasetProfile:
    return profile_split(load_split({"text": TEXTS, **columns}, split="train"))


def column_of(profile: DatasetProfile, name: str) -> ColumnProfile:
    found = profile.column(name)
    assert found is not None
    return found


class TestLists:
    def test_have_their_labels_in_the_profile(self):
        column = column_of(profile_of(tags=[["b"], [], ["a", "b"]]), "tags")
        assert (column.kind, column.num_classes, column.labels) == ("list", 2, ("a", "b"))
        assert column.single_classes is not None
        assert column.single_classes.some == ("a",)
        assert "label" not in column.problems or not column.problems["label"]
        assert ColumnProfile.from_json(column.to_json()).to_json() == column.to_json()

    @pytest.mark.parametrize(
        ("values", "row", "reason"),
        [
            ([["a"], ["b", "b"], ["b"]], 2, "the label 'b' more than once"),
            ([["a"], ["b"], None], 3, "the list of labels is missing"),
            ([["a", " "], ["b"], ["b"]], 1, "an empty label"),
            ([["a"], ["b"], [None]], 3, "an entry without a label"),
            ([["a"], [], ["a"]], None, "only the label 'a' occurs"),
            ([[1, 2], [2, 2], [1]], 2, "the label 2 more than once"),
        ],
    )
    def test_have_the_first_row_that_is_no_set(
        self, values: list[Any], row: int | None, reason: str
    ):
        profile = profile_of(tags=values)
        with pytest.raises(DataError, match=reason) as caught:
            complete_task(TaskSpec(), profile)
        assert (caught.value.row, caught.value.param) == (row, "label")

    def test_of_numbers_or_lists_are_no_labels(self):
        profile = profile_of(tags=[[0.5], [0.1], [0.2]])
        with pytest.raises(DataError, match="a column of lists of texts or integers is needed"):
            complete_task(TaskSpec(type="multi-label", label="tags"), profile)

    def test_are_not_the_label_of_a_classification(self):
        profile = profile_of(tags=[["b"], [], ["a", "b"]])
        with pytest.raises(DataError, match=r"one label of each row.*multi-label"):
            complete_task(TaskSpec(type="classification", label="tags"), profile)


class TestInference:
    def test_takes_a_column_of_lists(self):
        profile = profile_of(tags=[["b"], [], ["a"]])
        task = complete_task(TaskSpec(), profile)
        assert (task.type, task.label, task.metric) == ("multi-label", "tags", "micro_f1")
        assert count_labels(task, profile) == 2

    def test_prefers_a_number(self):
        profile = profile_of(tokens=[["b"], [], ["a"]], value=[0.5, 0.1, 0.2])
        assert infer_task(TaskSpec(), profile).label == "value"

    def test_takes_three_columns_of_0_and_1(self):
        profile = profile_of(a=[0, 1, 0], b=[1, 1, 0], c=[True, False, False])
        task = infer_task(TaskSpec(), profile)
        assert (task.type, task.label, task.text) == ("multi-label", ("a", "b", "c"), ("text",))
        assert (count_labels(task, profile), class_labels(task, profile)) == (3, ("a", "b", "c"))

    def test_two_columns_of_0_and_1_are_ambiguous(self):
        profile = profile_of(a=[0, 1, 0], b=[1, 1, 0])
        with pytest.raises(AmbiguousTaskError, match="2 of the columns could be the label"):
            infer_task(TaskSpec(), profile)
        assert infer_task(TaskSpec(type="multi-label"), profile).label == ("a", "b")
        assert infer_task(TaskSpec(label=("b", "a")), profile).label == ("b", "a")

    def test_a_column_called_label_is_the_label(self):
        profile = profile_of(a=[0, 1, 0], b=[1, 1, 0], label=[1, 0, 0])
        assert infer_task(TaskSpec(), profile).type == "classification"

    def test_another_number_among_them_is_ambiguous(self):
        profile = profile_of(a=[0, 1, 0], b=[1, 1, 0], c=[0, 1, 2])
        with pytest.raises(AmbiguousTaskError, match="3 of the columns could be the label"):
            infer_task(TaskSpec(), profile)

    def test_several_columns_are_refused_for_other_types(self):
        profile = profile_of(a=[0, 1, 0], b=[1, 1, 0])
        with pytest.raises(InvalidArgumentError, match="classification learns the column of"):
            infer_task(TaskSpec(type="classification", label=("a", "b")), profile)

    @pytest.mark.parametrize(
        ("label", "limit"),
        [
            (("a", "a"), "each once"),
            (("a", "text"), "another column than the inputs"),
            (3, "names"),
        ],
    )
    def test_impossible_label_columns_are_refused(self, label: Any, limit: str):
        with pytest.raises(InvalidArgumentError, match=limit):
            TaskSpec(text=("text",), label=label)

    def test_flags_of_a_csv_file_are_read(self, tmp_path: Path):
        path = tmp_path / "train.csv"
        path.write_text("text,a,b,c\nw1,0,1,true\nw2,1,1,false\nw3,0,0,false\n", encoding="utf-8")
        profile = profile_split(load_split(path, split="train"))
        assert infer_task(TaskSpec(), profile).label == ("a", "b", "c")
