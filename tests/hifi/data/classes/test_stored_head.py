"""hifi.data.classes.stored_head: which labels of a task fit a checkpoint's task head."""

from __future__ import annotations

import pytest

from hifi.data.classes.stored_head import Fit, StoredHead, fit_labels

NAMED = StoredHead.of({0: "cat", 1: "dog", 2: "ant"})
NUMBERED = StoredHead.of({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})


def fit(head: StoredHead, *classes: str | int) -> Fit | None:
    return fit_labels(head, classes=classes, num_labels=len(classes))


class TestStoredHead:
    def test_has_the_names_in_the_order_of_the_logits(self):
        head = StoredHead.of({1: "b", 0: "a"})
        assert head == StoredHead(num_labels=2, names=("a", "b"))

    def test_numbered_labels_have_no_names(self):
        assert StoredHead(num_labels=3, names=None) == NUMBERED
        assert StoredHead.of({0: "LABEL_1", 1: "LABEL_0"}).names == ("LABEL_1", "LABEL_0")


class TestFit:
    def test_equal_names_in_any_order(self):
        assert fit(NAMED, "ant", "cat", "dog") == Fit(rows=(2, 0, 1))
        assert fit(NAMED, "cat", "dog", "ant") == Fit(rows=(0, 1, 2))

    def test_integers_from_zero_get_the_heads_names(self):
        assert fit(NAMED, 0, 1, 2) == Fit(rows=(0, 1, 2), names=("cat", "dog", "ant"))

    def test_integers_keep_their_own_names_if_the_head_has_none(self):
        assert fit(NUMBERED, 0, 1, 2) == Fit(rows=(0, 1, 2), names=None)

    def test_names_that_are_numbers_come_before_the_order(self):
        head = StoredHead.of({0: "2", 1: "0", 2: "1"})
        assert fit(head, 0, 1, 2) == Fit(rows=(1, 2, 0))
        stars = StoredHead.of({0: "1", 1: "2", 2: "3"})
        assert fit(stars, 1, 2, 3) == Fit(rows=(0, 1, 2))

    @pytest.mark.parametrize(
        "classes",
        [
            ("cat", "dog"),  # fewer
            ("ant", "bee", "cat", "dog"),  # more
            ("ant", "bee", "cat"),  # another
            ("Ant", "Cat", "Dog"),  # another spelling
            (1, 2, 3),  # not counted from zero
            ("0", "1", "2"),  # texts, not integers
        ],
    )
    def test_other_labels_do_not_fit(self, classes: tuple[str | int, ...]):
        assert fit(NAMED, *classes) is None

    def test_texts_do_not_fit_a_head_without_names(self):
        assert fit(NUMBERED, "a", "b", "c") is None

    def test_a_name_that_occurs_twice_fits_nothing(self):
        assert fit(StoredHead.of({0: "a", 1: "a"}), "a", "b") is None

    @pytest.mark.parametrize(("labels", "fits"), [(1, True), (2, False)])
    def test_of_a_regression_is_one_of_as_many_numbers(self, labels: int, fits: bool):
        head = StoredHead.of({index: f"LABEL_{index}" for index in range(labels)})
        found = fit_labels(head, classes=None, num_labels=1)
        assert found == (Fit(rows=(0,)) if fits else None)


class TestMeaning:
    @pytest.mark.parametrize(
        ("head", "task", "fits"),
        [
            (None, "single_label_classification", True),
            (None, "multi_label_classification", False),
            ("single_label_classification", "multi_label_classification", False),
            ("multi_label_classification", "multi_label_classification", True),
            ("multi_label_classification", "single_label_classification", False),
            ("multi_label_classification", None, False),
        ],
    )
    def test_labels_that_exclude_each_other_do_not_fit_those_that_do_not(
        self, head: str | None, task: str | None, fits: bool
    ):
        stored = StoredHead.of({0: "a", 1: "b"}, problem_type=head)
        found = fit_labels(stored, classes=["a", "b"], num_labels=2, problem_type=task)
        assert (found is not None) == fits
