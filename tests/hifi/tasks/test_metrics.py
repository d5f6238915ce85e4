"""hifi.tasks.metrics: hand-computed values, and nothing but numbers at the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from hifi.tasks.metrics import accuracy, f1, matthews, pearson, spearman


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestClassification:
    def test_accuracy_is_the_share_that_is_right(self):
        assert accuracy(ints(0, 1, 2, 2), ints(0, 1, 1, 2)) == 0.75

    def test_f1_of_two_classes_looks_at_the_last_one(self):
        # class 1: 2 found of 3, 1 wrong alarm: precision 2/3, recall 2/3
        targets, predictions = ints(1, 1, 1, 0, 0, 0, 0), ints(1, 1, 0, 1, 0, 0, 0)
        assert f1(targets, predictions, num_classes=2) == pytest.approx(2 / 3)
        assert f1(1 - targets, 1 - predictions, num_classes=2) == pytest.approx(3 / 4)

    def test_f1_of_more_classes_is_the_mean_of_theirs(self):
        # F1 of 0: 1; of 1: precision 1/2, recall 1; of 2: precision 1, recall 1/2
        value = f1(ints(0, 1, 2, 2), ints(0, 1, 1, 2), num_classes=3)
        assert value == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)

    def test_f1_of_a_class_that_does_not_occur_takes_nothing_away(self):
        assert f1(ints(0, 1), ints(0, 1), num_classes=3) == 1.0
        # predicted once, it counts: F1 of 0 is 1, of 1 precision 1 and recall 1/2, of 2 it is 0
        value = f1(ints(0, 1, 1), ints(0, 1, 2), num_classes=3)
        assert value == pytest.approx((1 + 2 / 3 + 0) / 3)

    @pytest.mark.parametrize("targets", [ints(0, 1), ints(0, 0), ints(1, 1)])
    @pytest.mark.parametrize("constant", [0, 1])
    def test_constant_predictions_give_numbers(self, targets, constant: int):
        predictions = np.full_like(targets, constant)
        for value in (f1(targets, predictions, num_classes=2), matthews(targets, predictions)):
            assert math.isfinite(value)
        assert matthews(targets, predictions) == 0.0
        assert f1(targets, ints(0, 0), num_classes=2) == 0.0

    def test_matthews(self):
        # tp 2, tn 3, fp 1, fn 1: (6 - 1) / sqrt(3 * 3 * 4 * 4)
        value = matthews(ints(1, 1, 1, 0, 0, 0, 0), ints(1, 1, 0, 1, 0, 0, 0))
        assert value == pytest.approx(5 / 12)


class TestRegression:
    def test_pearson_measures_the_linear_relation(self):
        assert pearson(floats(1, 2, 3), floats(2, 4, 6)) == pytest.approx(1)
        assert pearson(floats(1, 2, 3), floats(1, 2, 9)) == pytest.approx(
            np.corrcoef([1, 2, 3], [1, 2, 9])[0, 1]
        )

    def test_spearman_measures_the_order_alone(self):
        assert spearman(floats(1, 2, 3), floats(1, 2, 9)) == pytest.approx(1)
        assert spearman(floats(1, 2, 3, 4), floats(4, 3, 2, 1)) == pytest.approx(-1)

    @pytest.mark.parametrize("metric", [pearson, spearman])
    @pytest.mark.parametrize(
        "predictions",
        [floats(2, 2, 2), floats(math.nan, 1, 2), floats(1e30, 1e30, 1e30 * (1 + 1e-15))],
    )
    def test_constant_predictions_give_numbers(self, metric, predictions):
        assert math.isfinite(metric(floats(1, 2, 3), predictions))
        assert metric(floats(1, 2, 3), floats(2, 2, 2)) == 0.0

    @pytest.mark.parametrize("metric", [pearson, spearman])
    def test_one_row_has_no_correlation(self, metric):
        assert metric(floats(1), floats(1)) == 0.0
