"""hifi.tasks.report: scores of each class by hand, and how many classes a report shows."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from sklearn.metrics import classification_report

from hifi.tasks.metrics import f1
from hifi.tasks.report import MOST_CLASSES, ClassReport, report_classes

NAMES = ("ant", "bee", "cat")
# Rows: 3 ants of which one is taken for a bee, 2 bees, 1 cat taken for an ant.
TARGETS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 1, 0, 1, 1, 0])


def report(names=NAMES, targets=TARGETS, predictions=PREDICTIONS) -> ClassReport:
    return report_classes(names, targets, predictions, split="test")


class TestScores:
    def test_of_each_class_in_the_order_of_the_labels(self):
        found = report()
        assert (found.split, found.classes) == ("test", 3)
        assert [vars(scores) for scores in found.per_class] == [
            {
                "label": "ant",
                "precision": pytest.approx(2 / 3),
                "recall": pytest.approx(2 / 3),
                "f1": pytest.approx(2 / 3),
                "support": 3,
            },
            {
                "label": "bee",
                "precision": pytest.approx(2 / 3),
                "recall": 1.0,
                "f1": pytest.approx(0.8),
                "support": 2,
            },
            {"label": "cat", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        ]

    def test_are_those_of_scikit_learn(self):
        generator = np.random.default_rng(0)
        targets, predictions = generator.integers(0, 3, (2, 100))
        known = classification_report(targets, predictions, target_names=NAMES, output_dict=True)
        for scores in report(NAMES, targets, predictions).per_class:
            expected = known[scores.label]
            assert scores.precision == expected["precision"]
            assert scores.recall == expected["recall"]
            assert (scores.f1, scores.support) == (expected["f1-score"], expected["support"])

    def test_of_two_classes_hold_the_f1_of_the_task(self):
        targets, predictions = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
        found = report(("no", "yes"), targets, predictions)
        assert found.per_class[1].f1 == f1(targets, predictions, num_classes=2)

    def test_of_a_class_that_nobody_has_are_zero_without_a_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = report(("ant", "bee", "cat", "dog"))
        assert vars(found.per_class[3]) == {
            "label": "dog",
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "support": 0,
        }


class TestConfusion:
    def test_has_true_classes_in_rows(self):
        assert report().confusion == ((2, 1, 0), (0, 2, 0), (1, 0, 0))


class TestManyClasses:
    def test_as_many_as_fit_are_all_shown(self):
        names = [f"c{index}" for index in range(MOST_CLASSES)]
        found = report(names)
        assert [scores.label for scores in found.per_class] == names
        assert len(found.confusion) == len(found.confusion[0]) == MOST_CLASSES

    def test_of_more_those_with_the_most_rows_are_shown_and_the_others_together(self):
        count = MOST_CLASSES + 10
        names = [f"c{index}" for index in range(count)]
        # The last ten classes have two rows, all others one; each is predicted as the next one.
        targets = np.concatenate([np.arange(count), np.arange(MOST_CLASSES, count)])
        predictions = (targets + 1) % count
        found = report(names, targets, predictions)
        shown = [f"c{index}" for index in (*range(MOST_CLASSES - 10), *range(MOST_CLASSES, count))]
        assert [scores.label for scores in found.per_class] == shown
        assert found.classes == count
        matrix = np.array(found.confusion)
        assert matrix.shape == (MOST_CLASSES + 1, MOST_CLASSES + 1)
        assert matrix.sum() == len(targets)
        assert matrix[0, 1] == 1  # c0 as c1
        assert matrix[39, -1] == 1  # c39 as c40, which is not shown
        assert matrix[-1, -1] == 9  # c40 to c48 as the next ones
        assert matrix[-1, 40] == 1  # c49 as c50
        assert matrix.sum(1)[:-1].tolist() == [scores.support for scores in found.per_class]

    def test_its_json_stays_small_whatever_the_labels_are(self):
        names = [f"{index} " + "x" * 10_000 for index in range(20_000)]
        targets = np.arange(20_000)
        found = report(names, targets, targets)
        assert len(json.dumps(found.to_json())) < 25_000
        assert found.per_class[0].label == "0 " + "x" * 97 + "…"


class TestJson:
    def test_is_read_back(self):
        document = json.loads(json.dumps(report().to_json()))
        assert ClassReport.from_json(document) == report()
        assert set(document) == {"split", "classes", "per_class", "confusion"}
        assert document["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
