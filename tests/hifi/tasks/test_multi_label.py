"""hifi.tasks.multi_label: labels that do not exclude each other, from the data to the answer."""

from __future__ import annotations

import math
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from hifi.data.splits import load_split
from hifi.errors import DataError, DeltaFileError, InvalidArgumentError
from hifi.tasks import TaskSpec, make_task
from hifi.tasks.base import Sample
from hifi.tasks.multi_label import MultiLabel
from tests.measured import Measured

SAMPLE = Sample({}, {}, 1)
LISTS = [["b"], [], ["a", "b"], ["c"], ["b"], ["a"]]


def lists(*labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"w{place}", "labels": each} for place, each in enumerate(labels)]


def flags(**columns: list[Any]) -> dict[str, list[Any]]:
    rows = len(next(iter(columns.values())))
    return {"text": [f"w{place}" for place in range(rows)], **columns}


def make(source: Any, **fields: Any) -> MultiLabel:
    task = make_task(TaskSpec.of(fields), load_split(source, split="train"))
    assert isinstance(task, MultiLabel)
    return task


def logit(share: float) -> float:
    return math.log(share / (1 - share))


class TestTargets:
    def test_of_lists_are_sorted_labels(self):
        task = make(lists(*LISTS))
        assert (task.classes, task.label) == (("a", "b", "c"), "labels")
        targets = task.targets(load_split(lists(*LISTS), split="train"), split="train")
        expected = [[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
        assert targets.tolist() == expected
        assert targets.dtype == torch.bool

    def test_of_integers_with_names_are_the_names_in_their_order(self):
        features = datasets.Features(
            text=datasets.Value("string"),
            labels=datasets.List(datasets.ClassLabel(names=["z", "y", "x"])),
        )
        rows = datasets.Dataset.from_dict({"text": ["w1", "w2"], "labels": [[2, 0], [1]]}, features)
        task = make(rows)
        assert task.classes == ("z", "y", "x")
        assert task.targets(rows, split="train").tolist() == [[1, 0, 1], [0, 1, 0]]

    @pytest.mark.parametrize(
        ("toxic", "rude"),
        [
            ([0, 1, 1], [0, 0, 1]),
            ([False, True, True], [False, False, True]),
            ([0.0, 1.0, 1.0],) * 2,
        ],
    )
    def test_of_columns_are_their_flags(self, toxic: list[Any], rude: list[Any]):
        source = flags(toxic=toxic, rude=rude)
        task = make(source, type="multi-label")
        assert task.classes == task.label == ("toxic", "rude")
        found = task.targets(load_split(source, split="train"), split="train")
        assert found.T.tolist() == [list(map(float, toxic)), list(map(float, rude))]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (["b", "b"], "the list has the label 'b' more than once"),
            (["b", ""], "the label is empty"),
            (["b", None], "the list has an entry without a label"),
            (["new"], "the label 'new' does not occur in train; known are 'a', 'b', 'c'"),
        ],
    )
    def test_name_the_row_of_a_bad_list(self, row: list[Any], reason: str):
        held_out = load_split(lists(["a"], row, row), split="validation")
        with pytest.raises(DataError, match=reason) as caught:
            make(lists(*LISTS)).targets(held_out, split="validation")
        assert (caught.value.row, caught.value.column) == (2, "labels")

    def test_a_missing_list_is_refused(self):
        with pytest.raises(DataError, match="the list of labels is missing") as caught:
            make([*lists(*LISTS), {"text": "w1", "labels": None}])
        assert caught.value.row == len(LISTS) + 1

    def test_name_the_row_of_a_bad_flag(self):
        source = flags(toxic=[0, 1, 2], rude=[0, 1, 1])
        with pytest.raises(DataError, match="0 or 1 is needed, not 2") as caught:
            make(source, label=["toxic", "rude"]).targets(
                load_split(source, split="train"), split="train"
            )
        assert (caught.value.row, caught.value.column) == (3, "toxic")

    def test_one_label_is_too_few(self):
        with pytest.raises(DataError, match="only the label 'a' occurs; at least two"):
            make(lists(["a"], []))


class TestLoss:
    def test_is_the_mean_binary_cross_entropy(self):
        task = make(lists(*LISTS))
        logits = torch.tensor([[logit(0.9), logit(0.2), logit(0.5)]])
        expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3
        targets = torch.tensor([[1.0, 0.0, 0.0]])
        assert task.loss(logits, targets).item() == pytest.approx(expected)
        assert task.training_loss(logits, targets).item() == pytest.approx(expected)

    def test_weights_count_for_the_rows_that_have_the_label(self):
        targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        task = make(lists(["a"], [], ["b"], ["b"])).weighted({"a": 3}, targets=targets)
        logits = torch.tensor([[logit(0.9), logit(0.2)]])
        mean = (3 + 3 * 1 + 4 * 1) / 8  # of the four rows and two labels
        expected = -(3 * math.log(0.9) + math.log(0.8)) / 2 / mean
        found = task.training_loss(logits, torch.tensor([[1.0, 0.0]]))
        assert found.item() == pytest.approx(expected)

    def test_balanced_gives_both_sides_of_a_label_the_same_sum(self):
        targets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
        task = make(lists(["a", "b"], ["b"], ["b"], [])).weighted("balanced", targets=targets)
        assert task.row_weights == pytest.approx((3, 1 / 3))

    def test_an_unknown_label_has_no_weight(self):
        with pytest.raises(InvalidArgumentError, match="no class of the training split is called"):
            make(lists(*LISTS)).weighted({"d": 2}, targets=torch.zeros(6, 3))


class TestThreshold:
    SCORES = torch.tensor([[0.31, 0.02], [0.28, 0.05], [0.12, 0.26], [0.1, 0.2]]).logit()
    TRUTH = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def test_is_the_one_with_the_best_metric(self):
        task = make(lists(["a"], ["b"]))
        assert task.evaluate(self.SCORES, Measured(self.TRUTH))["micro_f1"] == 0.0  # at one half
        fitted = task.fit_answers(self.SCORES, Measured(self.TRUTH))
        assert 0.2 < fitted["threshold"] <= 0.26
        found = task.with_answers(fitted).evaluate(self.SCORES, Measured(self.TRUTH))
        assert found["micro_f1"] == found["subset_accuracy"] == 1.0

    def test_of_equal_ones_is_the_closest_to_one_half(self):
        scores = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).logit()
        fitted = make(lists(["a"], ["b"])).fit_answers(scores, Measured(torch.eye(2)))
        assert fitted == {"threshold": 0.5}

    def test_can_be_set(self):
        task = make(lists(["a"], ["b"]), type="multi-label", threshold=0.3)
        assert task.fit_answers(self.SCORES, Measured(self.TRUTH)) == {"threshold": 0.3}
        assert task.describe()["threshold"] == task.settings()["threshold"] == 0.3

    @pytest.mark.parametrize("threshold", [0, 1, -1, "high", True, float("nan")])
    def test_outside_its_range_is_refused(self, threshold: Any):
        with pytest.raises(InvalidArgumentError, match="threshold"):
            TaskSpec.of({"type": "multi-label", "threshold": threshold})

    @pytest.mark.parametrize("threshold", [0, 1.0, "high", 1])
    def test_that_a_delta_cannot_mean_is_refused(self, threshold: Any):
        with pytest.raises(DeltaFileError, match="records threshold="):
            make(lists(*LISTS)).with_answers({"threshold": threshold})

    def test_is_not_for_other_tasks(self):
        rows = [{"text": "w1", "label": 0}, {"text": "w2", "label": 1}]
        with pytest.raises(InvalidArgumentError, match="a classification task has none"):
            make_task(TaskSpec(threshold=0.5), load_split(rows, split="train"))


class TestResult:
    LOGITS = torch.tensor([[2.0, -2.0, 0.1], [-1.0, 1.0, -1.0], [1.0, 1.0, -3.0]])
    TRUTH = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])

    def test_has_the_metrics_of_scikit_learn(self):
        found = make(lists(*LISTS)).evaluate(self.LOGITS, Measured(self.TRUTH))
        truth, predicted = self.TRUTH.numpy(), (self.LOGITS > 0).numpy()
        micro = f1_score(truth, predicted, average="micro")
        assert found["micro_f1"] == pytest.approx(micro)
        each = f1_score(truth, predicted, average=None, zero_division=0)
        assert found["macro_f1"] == pytest.approx(np.mean(each))  # the third is predicted once
        assert found["subset_accuracy"] == pytest.approx(1 / 3)
        assert found["mean_average_precision"] == pytest.approx(1.0)  # of the first two labels

    def test_answers_with_the_labels_above_the_threshold(self):
        answer = make(lists(*LISTS)).read_answer([self.LOGITS[0]], SAMPLE)
        assert answer["labels"] == ["a", "c"]
        assert answer["scores"] == pytest.approx(
            {name: 1 / (1 + math.exp(-z)) for name, z in zip("abc", (2, -2, 0.1), strict=True)}
        )

    def test_reports_each_label_without_a_matrix(self):
        report = make(lists(*LISTS)).report(self.LOGITS, Measured(self.TRUTH), split="test")
        first = report.per_class[0]
        assert (first.label, first.precision, first.recall, first.support) == ("a", 0.5, 1.0, 1)
        assert (report.classes, report.confusion, report.split) == (3, None, "test")
        assert type(report).from_json(report.to_json()) == report

    @pytest.mark.parametrize(
        ("row", "only"), [([-1.0, -1.0, -1.0], "(no label)"), ([1.0, -1.0, 1.0], "a, c")]
    )
    def test_tells_when_every_row_gets_the_same(self, row: list[float], only: str):
        task = make(lists(*LISTS))
        assert task.only_answer(torch.tensor([row, row, row]), Measured(self.TRUTH)) == only
        assert task.only_answer(self.LOGITS, Measured(self.TRUTH)) is None
        assert task.only_answer(torch.tensor([row, row]), Measured(self.TRUTH[1:])) is None

    def test_counts_the_rows_of_each_label(self):
        assert make(lists(*LISTS)).count_rows(self.TRUTH) == {"a": 1, "b": 2, "c": 0}
