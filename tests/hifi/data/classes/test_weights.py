"""hifi.data.classes.weights: what callers may give as weights of classes."""

from __future__ import annotations

import math
from decimal import Decimal
from types import MappingProxyType

import numpy as np
import pytest

from hifi.data.classes.weights import (
    check_class_weights,
    check_labels,
    check_task,
    parse_class_weights,
)
from hifi.errors import InvalidArgumentError


class TestCheck:
    def test_balanced_is_a_word(self):
        assert check_class_weights("balanced") == "balanced"

    def test_weights_become_floats_by_the_names_of_labels(self):
        given = MappingProxyType({"no": 1, 3: np.float32(0.5), np.int64(4): 2.5, "": 1e-9})
        checked = check_class_weights(given)
        assert checked == {"no": 1.0, "3": 0.5, "4": 2.5, "": 1e-9}
        assert isinstance(checked, dict)
        assert {type(weight) for weight in checked.values()} == {float}

    @pytest.mark.parametrize(
        "weight", [0, -1, math.nan, math.inf, 10**400, True, None, "2", Decimal(2)]
    )
    def test_a_weight_must_be_a_finite_number_above_0(self, weight: object):
        with pytest.raises(InvalidArgumentError) as caught:
            check_class_weights({"a": 1.0, "b": weight})
        assert caught.value.param == "class_weights"
        assert caught.value.limit == "the weight of 'b' must be a finite number above 0"

    @pytest.mark.parametrize(
        "value", ["Balanced", "", 1.0, None, True, {}, [], [1.0, 2.0], np.ones(2), {"balanced"}]
    )
    def test_other_kinds_are_refused(self, value: object):
        with pytest.raises(InvalidArgumentError, match=r"'balanced', or a weight above 0"):
            check_class_weights(value)

    @pytest.mark.parametrize("labels", [(True,), (1.0,), (None,), (1, "1"), (("a",),)])
    def test_a_label_is_a_text_or_an_integer_and_given_once(self, labels: tuple):
        with pytest.raises(InvalidArgumentError, match="each label once, as a text or an integer"):
            check_class_weights(dict.fromkeys(labels, 1.0))


class TestParse:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("balanced", "balanced"),
            ('{"yes": 3, "no": 0.5}', {"yes": 3, "no": 0.5}),
            ("{yes: 3}", "{yes: 3}"),
            ("[" * 100_000, "[" * 100_000),
            ("3", 3),
        ],
    )
    def test_reads_json_and_leaves_all_else_to_the_check(self, text: str, value: object):
        assert parse_class_weights(text) == value


class TestFit:
    @pytest.mark.parametrize("weights", ["balanced", {"a": 1.0}])
    def test_only_classes_have_weights(self, weights):
        check_task(weights, has_classes=True, task="classification")
        check_task(None, has_classes=False, task="regression")
        with pytest.raises(InvalidArgumentError, match="and regression does not"):
            check_task(weights, has_classes=False, task="regression")

    def test_every_label_must_be_a_class_of_the_training_split(self):
        check_labels({"1": 2.0}, labels=(1, 2))
        check_labels("balanced", labels=("a", "b"))
        check_labels(None, labels=("a", "b"))
        with pytest.raises(InvalidArgumentError) as caught:
            check_labels({"a": 1.0, "c": 7.0}, labels=("a", "b"))
        assert caught.value.value == {"c": 7.0}
        assert caught.value.limit.endswith("known are 'a', 'b'")

    def test_not_all_of_many_labels_are_listed(self):
        with pytest.raises(InvalidArgumentError) as caught:
            check_labels({"x": 1.0}, labels=range(10_000))
        assert len(str(caught.value)) < 300
