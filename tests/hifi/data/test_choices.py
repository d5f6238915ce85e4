"""hifi.data: columns of choices, the labels that number them, and rows that cannot be used."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hifi.data.columns import profile_split
from hifi.data.inference import complete_task, infer_task
from hifi.data.numbering import Numbering, choice_label, find_numbering
from hifi.data.profile import DatasetProfile
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split, read_split
from hifi.errors import AmbiguousTaskError, DataError, InvalidArgumentError
from hifi.tasks import make_task

Row = dict[str, Any]
TYPE = "multiple-choice"
_ENDINGS = ["left", "slept", "ran"]


def listed(label: Any = 0, **changes: Any) -> Row:
    return {"text": "Then she", "choices": list(_ENDINGS), "label": label, **changes}


def split(*labels: Any, **changes: Any) -> list[Row]:
    return [listed(label, **changes) for label in labels]


def infer(rows: list[Row], **said: Any) -> TaskSpec:
    return infer_task(TaskSpec(**said), profile_split(load_split(rows, split="train")))


class TestNumbering:
    @pytest.mark.parametrize(
        ("labels", "first"),
        [
            ([2, 0], 0),
            ([1, 3], 1),
            ([3], 1),
            (["B", "A"], "A"),
            (["c"], "a"),
        ],
    )
    def test_is_told_by_the_labels(self, labels: list[Any], first: Any):
        rows = {label: row for row, label in enumerate(labels, start=1)}
        assert find_numbering(rows, count=3) == (Numbering(first, 3), None)

    def test_is_in_doubt_if_neither_end_occurs(self):
        numbering, problem = find_numbering({1: 1, 2: 2}, count=3)
        assert numbering is None
        assert problem is not None
        assert "from 0 or from 1: neither 0 nor 3 occurs" in problem.reason

    @pytest.mark.parametrize(
        ("labels", "row"), [([0, 3], 2), ([1, 4, 3], 2), (["A", 1], 2), (["A", "b"], 2), ([5], 1)]
    )
    def test_of_a_label_beyond_them_names_its_row(self, labels: list[Any], row: int):
        _, problem = find_numbering({label: n for n, label in enumerate(labels, 1)}, count=3)
        assert problem is not None
        assert problem.row == row
        assert f"the label {labels[row - 1]!r} is none of the 3 choices" in problem.reason

    def test_places_count_from_0(self):
        assert [Numbering(1, 3).index(label) for label in (1, 3)] == [0, 2]
        assert Numbering("A", 3).index("C") == 2

    @pytest.mark.parametrize(("given", "read"), [("2", 2), (" 2", 2), ("B", "B"), (0, 0)])
    def test_reads_digits_as_numbers(self, given: Any, read: Any):
        assert choice_label(given) == read

    @pytest.mark.parametrize("given", ["AB", "1.5", "", "é", -1])
    def test_of_anything_else_there_is_none(self, given: Any):
        with pytest.raises(ValueError, match="neither a number nor a letter"):
            choice_label(given)


class TestShapes:
    """Published data sets, by their columns."""

    @pytest.mark.parametrize(
        ("row", "labels", "text", "choices"),
        [
            pytest.param(
                {
                    "video-id": "anetv_1",
                    "fold-ind": "17",
                    "startphrase": "She opens it. She",
                    "sent1": "She opens it.",
                    "sent2": "She",
                    "gold-source": "gold",
                    **{f"ending{n}": f"does {n}" for n in range(4)},
                },
                [0, 3],
                ("startphrase",),
                tuple(f"ending{n}" for n in range(4)),
                id="SWAG",
            ),
            pytest.param(
                {
                    "ind": 4,
                    "activity_label": "Sailing",
                    "ctx_a": "A boat sails.",
                    "ctx_b": "it",
                    "ctx": "A boat sails. it",
                    "endings": ["sinks", "turns", "waits", "burns"],
                    "source_id": "w~1",
                    "split": "train",
                    "split_type": "indomain",
                },
                ["0", "3"],
                ("ctx",),
                ("endings",),
                id="HellaSwag",
            ),
            pytest.param(
                {
                    "premise": "It rained.",
                    "choice1": "She got wet.",
                    "choice2": "She got rich.",
                    "question": "effect",
                    "idx": 0,
                },
                [0, 1],
                ("premise", "question"),
                ("choice1", "choice2"),
                id="COPA",
            ),
            pytest.param(
                {"goal": "Open a jar", "sol1": "Turn the lid", "sol2": "Wait"},
                [0, 1],
                ("goal",),
                ("sol1", "sol2"),
                id="PIQA",
            ),
            pytest.param(
                {"option_a": "one", "option_b": "two"},
                ["A", "B"],
                (),
                ("option_a", "option_b"),
                id="no text",
            ),
        ],
    )
    def test_are_told_by_their_columns(
        self, row: Row, labels: list[Any], text: tuple[str, ...], choices: tuple[str, ...]
    ):
        spec = infer([{**row, "label": label} for label in labels])
        assert (spec.type, spec.text, spec.choices, spec.label) == (TYPE, text, choices, "label")

    def test_race_has_its_label_in_answer(self):
        rows = [
            {
                "example_id": f"high{n}.txt",
                "article": "She left. It was late.",
                "answer": answer,
                "question": "What did she do?",
                "options": ["left", "slept", "ran", "sang"],
            }
            for n, answer in enumerate("AD")
        ]
        spec = infer(rows)
        assert (spec.text, spec.choices) == (("article", "question"), ("options",))
        assert spec.label == "answer"

    def test_class_names_that_are_digits_are_numbers(self):
        features = Features(
            {
                "startphrase": Value("string"),
                **{f"ending{n}": Value("string") for n in range(2)},
                "label": ClassLabel(names=["0", "1"]),
            }
        )
        row = {"startphrase": "She", "ending0": "left", "ending1": "slept"}
        dataset = Dataset.from_list([{**row, "label": n} for n in (1, 0)], features=features)
        task = make_task(TaskSpec(), dataset)
        assert task.type == TYPE
        assert task.targets(dataset, split="train").tolist() == [1, 0]

    def test_cells_of_a_csv_file(self, tmp_path: Path):
        path = tmp_path / "train.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "choice1", "choice2", "label"])
            writer.writerows([["She", "left", "slept", 1], ["He", "ran", "7", 2]])
        dataset = load_split(path, split="train")
        task = make_task(TaskSpec(), dataset)
        assert task.type == TYPE
        assert task.targets(dataset, split="train").tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("row", "labels", "expected"),
        [
            ({"sentence1": "a b", "sentence2": "c d"}, [0, 1], "classification"),
            ({"text": "a", "labels": ["x", "y"]}, None, "multi-label"),
            ({"text": "a b", "choices": ["x", "y"]}, [0.5, 0.25], "regression"),
        ],
    )
    def test_others_are_not_taken_for_choices(self, row: Row, labels: Any, expected: str):
        rows = [row, row] if labels is None else [{**row, "label": label} for label in labels]
        assert infer(rows).type == expected


class TestNamedColumns:
    def test_a_type_is_enough_if_the_rest_is_plain(self):
        rows = [{"stem": "She", "x1": "left", "x2": "ran", "right": n} for n in (0, 1)]
        spec = infer(rows, type=TYPE)
        assert (spec.text, spec.choices, spec.label) == (("stem",), ("x1", "x2"), "right")

    def test_named_choices_mean_the_type(self):
        rows = [{"stem": "She", "good": "left", "bad": "ran", "label": n} for n in (0, 1)]
        spec = infer(rows, choices=("good", "bad"))
        assert (spec.type, spec.text) == (TYPE, ("stem",))

    @pytest.mark.parametrize(
        ("row", "param"),
        [
            ({"text": "She", "label": 0}, "choices"),
            ({"text": "She", "choices": ["left", "ran"], "right": 0, "wrong": 1}, "label"),
            ({"p": "She", "q": "a", "r": "b", "choices": ["left", "ran"], "label": 0}, "text"),
        ],
    )
    def test_what_is_missing_is_named(self, row: Row, param: str):
        other = {"label": 1, "right": 1, "wrong": 0}
        rows = [row, {name: other.get(name, value) for name, value in row.items()}]
        with pytest.raises(AmbiguousTaskError) as caught:
            infer(rows, type=TYPE)
        assert caught.value.param == param

    @pytest.mark.parametrize("choices", [("a", "a"), tuple(f"c{n}" for n in range(101)), 3])
    def test_impossible_names(self, choices: Any):
        with pytest.raises(InvalidArgumentError, match="choices"):
            TaskSpec(choices=choices)

    def test_another_type_has_none(self):
        with pytest.raises(InvalidArgumentError, match="choices"):
            infer(split(0, 1), type="classification", choices=("choices",))


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (listed(choices=None), "the list of choices is missing"),
            (listed(choices=[]), "the list is empty"),
            (listed(choices=["left"]), "has 1 choice; at least 2 are needed"),
            (listed(choices=["left", "ran"]), "another number of choices than the 3"),
            (listed(choices=["left", " ", "ran"]), "the list has an empty text"),
            (listed(choices=["left", None, "ran"]), "an entry without a text"),
            (listed(choices=["x"] * 101), "more than 100 choices"),
            (listed(label=3), "the label 3 is none of the 3 choices"),
            (listed(label=None), "the label is missing"),
            (listed(text=" "), "the text is empty"),
        ],
    )
    def test_are_named(self, row: Row, reason: str):
        rows = [*split(0, 1, 2), row]
        dataset = load_split(rows, split="train")
        spec = TaskSpec(type=TYPE, text=("text",), choices=("choices",), label="label")
        with pytest.raises(DataError, match=reason) as caught:
            complete_task(spec, profile_split(dataset))
        assert caught.value.row == 4

    def test_of_other_splits_are_compared_with_training(self):
        numbering = Numbering(1, 3)
        task = make_task(TaskSpec(), load_split(split(1, 3), split="train"))
        assert getattr(task, "numbering") == numbering  # noqa: B009 - of one task type only
        other = load_split(split(1, 0), split="validation")
        with pytest.raises(
            DataError, match="label 0 is none of the 3 choices, which are numb"
        ) as e:
            task.targets(other, split="validation")
        assert (e.value.row, e.value.split) == (2, "validation")

    def test_lists_of_numbers_are_no_choices(self):
        rows = split(0, 1, choices=[1, 2])
        spec = TaskSpec(type=TYPE, text=("text",), choices=("choices",), label="label")
        with pytest.raises(DataError, match="lists of texts are needed"):
            complete_task(spec, profile_split(load_split(rows, split="train")))

    def test_labels_that_number_nothing(self):
        rows = split("left", "ran")
        spec = TaskSpec(type=TYPE, text=("text",), choices=("choices",), label="label")
        with pytest.raises(DataError, match="numbers or the letters of the right choices"):
            complete_task(spec, profile_split(load_split(rows, split="train")))
        with pytest.raises(DataError, match="'left' is neither a number nor a letter") as caught:
            make_task(spec, load_split(rows, split="train"))
        assert caught.value.row == 1


def test_a_profile_keeps_what_choices_need():
    profile = profile_split(read_split(split("A", "C"), split="train").dataset)
    again = DatasetProfile.from_json(profile.to_json())
    assert again.to_json() == profile.to_json()
    choices, label = (again.column(name) for name in ("choices", "label"))
    assert choices is not None
    assert label is not None
    assert choices.num_choices == 3
    assert label.choice_rows == {"train": {"A": 1, "C": 2}}
