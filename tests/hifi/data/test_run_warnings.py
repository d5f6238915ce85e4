"""hifi.data.run_warnings: doubtful labels and replaced task heads, in words."""

from __future__ import annotations

import pytest

from hifi.data.classes.contradictions import Contradictions
from hifi.data.classes.stored_head import StoredHead
from hifi.data.columns import profile_split
from hifi.data.run_warnings import (
    are_many_classes,
    refuse_to_keep,
    warn_of_classes,
    warn_of_contradictions,
    warn_of_failed_probe,
    warn_of_falling_loss,
    warn_of_few_rows,
    warn_of_labels_by_number,
    warn_of_less_than_probe,
    warn_of_one_class,
    warn_of_replaced_head,
    warn_of_unlabelled_test,
)
from hifi.data.splits import load_split


def warnings_of(labels: list[str] | list[int]) -> list[tuple[str, str]]:
    rows = [{"label": label} for label in labels]
    profile = profile_split(load_split(rows, split="train"))
    found = warn_of_classes(profile.columns[0], rows=len(rows))
    assert all(warning.param == "label" for warning in found)
    return [(warning.code, warning.message) for warning in found]


class TestManyClasses:
    @pytest.mark.parametrize(
        ("count", "rows", "are_many"),
        [
            (600, 600, True),
            (10, 19, True),
            (10, 20, False),  # two rows of each, on average
            (9, 9, False),  # a small sample
            (2, 1000, False),
            (None, 10, True),  # too many to count
        ],
    )
    def test_have_fewer_than_two_rows_each(self, count: int | None, rows: int, are_many: bool):
        assert are_many_classes(count, rows=rows) is are_many

    def test_of_an_id_are_reported_alone(self):
        ((code, message),) = warnings_of(list(range(600)))
        assert code == "many_classes"
        assert message == (
            "the label 'label' has 600 classes in 600 rows: if it is an id or a text, choose "
            "another column as the label"
        )

    def test_that_cannot_be_counted(self):
        ((code, message),) = warnings_of([f"{'x' * 2000}{number}" for number in range(12)])
        assert (code, "too many classes in 12 rows" in message) == ("many_classes", True)


class TestRareClasses:
    def test_name_some_of_them(self):
        labels = [*"aabbccddeeffgghh" * 4, "one", "two"]
        ((code, message),) = warnings_of(labels)
        assert code == "rare_classes"
        assert message == (
            "2 of the 10 classes of the label 'label' have a single training row: 'one', 'two'; "
            "add rows of these classes, or merge them with others"
        )

    def test_name_five_at_most(self):
        ((_, message),) = warnings_of(["a"] * 9 + [f"b{number}" for number in range(7)])
        assert "7 of the 8 classes" in message
        assert ": 'b0', 'b1', 'b2', 'b3', 'b4', …; add" in message

    def test_without_them_there_is_no_warning(self):
        assert warnings_of(["a", "a", "b", "b"]) == []

    def test_values_that_are_one_label_count_together(self, tmp_path):
        path = tmp_path / "train.csv"
        path.write_text("label\n1\n 1\n2\n2 \n")
        profile = profile_split(load_split(str(path), split="train"))
        assert warn_of_classes(profile.columns[0], rows=4) == ()


class TestReplacedHead:
    def test_names_both_sets_of_labels_shortened(self):
        head = StoredHead.of(dict(enumerate("abcdefg")))
        warning = warn_of_replaced_head("vit", head=head, classes=["x" * 99, 1])
        assert (warning.code, warning.param) == ("task_head_replaced", "model")
        assert warning.message == (
            "the task head of vit (7 labels: 'a', 'b', 'c', 'd', 'e', …) does not fit the task (2 "
            f"labels: '{'x' * 28}…, 1): it is replaced by a new one"
        )

    @pytest.mark.parametrize(("count", "is_told"), [(2, True), (3, False)])
    def test_tells_of_named_integers_that_would_fit_without_names(self, count, is_told):
        head = StoredHead.of(dict(enumerate("abc"[:count])))
        arguments = {"head": head, "classes": ["no", "yes"], "has_named_integers": True}
        cause = "(2 labels: 'no', 'yes'; names in the data, a ClassLabel, count as its labels, "
        assert (cause in warn_of_replaced_head("vit", **arguments).message) == is_told
        assert (cause in str(refuse_to_keep("vit", **arguments))) == is_told

    def test_of_a_regression(self):
        head = StoredHead.of({0: "LABEL_0", 1: "LABEL_1"})
        message = warn_of_replaced_head("bert", head=head, classes=None).message
        assert "(2 labels without names) does not fit the task (a number)" in message
        head = StoredHead.of({0: "LABEL_0"})
        assert (
            "(1 output without names)"
            in warn_of_replaced_head("bert", head=head, classes=["a", "b"]).message
        )


class TestLabelsByNumber:
    def test_says_which_number_is_taken_for_which_name(self):
        names = ["airplane", "automobile", *("x" * 99 for _ in range(8))]
        warning = warn_of_labels_by_number("vit", names=names)
        assert (warning.code, warning.param) == ("labels_by_number", "label")
        assert warning.message == (
            "the labels 0 to 9 are taken for the 10 labels of vit's own task head, by their "
            "numbers only: 0 is 'airplane', 1 is 'automobile', "
            + "".join(f"{number} is '{'x' * 28}…, " for number in (2, 3, 4))
            + "…; the task head is kept, and answers use its names. If your labels mean something "
            "else, write them as texts"
        )


class TestFewRows:
    def test_names_classes_with_two_to_seven_rows(self):
        (warning,) = warn_of_few_rows("label", counts={"a": 8, "b": 7, "c": 2, "d": 1, "e": 0})
        assert (warning.code, warning.param) == ("few_rows_per_class", "label")
        assert warning.message == (
            "2 of the 5 classes of the label 'label' have fewer than 8 training rows: 'b', 'c'; "
            "add rows of these classes, or merge them with others"
        )

    def test_without_them_there_is_no_warning(self):
        assert warn_of_few_rows("label", counts={"a": 8, "b": 1}) == ()

    def test_few_entities_are_named_down_to_none(self):
        counts = {"place": 8, "person": 7, "group": 0}
        (warning,) = warn_of_few_rows("tags", counts=counts, counted="entities")
        assert "2 of the 3 types of entities of the label 'tags'" in warning.message
        assert "fewer than 8 training entities: 'person', 'group'" in warning.message


class TestContradictions:
    @pytest.mark.parametrize(
        ("wrong", "rows"),
        [(2, 10), (2, 200), (50, 5000)],
    )
    def test_one_label_in_a_hundred_is_warned_of(self, wrong: int, rows: int):
        found = Contradictions(rows=wrong, example=(3, 7))
        (warning,) = warn_of_contradictions("intent", found, rows=rows)
        assert (warning.code, warning.param) == ("label_noise_suspected", "label")
        assert warning.message == (
            "rows with the same text have different labels in 'intent', such as the training rows "
            f"3 and 7: at least {wrong} of {rows:,} labels are wrong, or the text does not decide "
            "them; correct them, or leave out such rows"
        )

    @pytest.mark.parametrize(("wrong", "rows"), [(1, 10), (2, 201)])
    def test_a_few_are_not(self, wrong: int, rows: int):
        found = Contradictions(rows=wrong, example=(3, 7))
        assert warn_of_contradictions("intent", found, rows=rows) == ()

    def test_without_them_there_is_no_warning(self):
        assert warn_of_contradictions("label", None, rows=100) == ()


class TestResults:
    def test_one_class_names_it_and_what_to_change(self):
        warning = warn_of_one_class("no", learning_rate=3e-4, epochs=3)
        assert (warning.code, warning.param) == ("one_class", "learning_rate")
        assert "predicts 'no' for every validation row" in warning.message
        assert "a higher learning rate (this was 0.0003), more epochs (this was 3)" in (
            warning.message
        )

    @pytest.mark.parametrize(
        ("tuned", "rows", "is_below"),
        [(0.69, 100, True), (0.71, 100, False), (0.7, 10_000, True), (0.9, 4, False)],
    )
    def test_below_the_probe_by_more_than_chance(self, tuned: float, rows: int, is_below: bool):
        found = warn_of_less_than_probe("f1", tuned=tuned, probe=0.75, answers=rows)
        assert [warning.code for warning in found] == ["below_probe"] * is_below
        if is_below:
            assert f"f1 {tuned:.4f} is below the linear probe's 0.7500" in found[0].message
            assert "start the task head from the probe" in found[0].message

    def test_a_falling_loss_asks_for_more_epochs(self):
        warning = warn_of_falling_loss(epochs=3)
        assert (warning.code, warning.param) == ("not_converged", "epochs")
        assert "more epochs (this was 3)" in warning.message

    def test_a_test_split_without_labels_is_named(self):
        warning = warn_of_unlabelled_test("verdict")
        assert (warning.code, warning.param) == ("test_not_scored", "test")
        assert "no labels in 'verdict'" in warning.message

    def test_a_failed_probe_says_why(self):
        warning = warn_of_failed_probe("a state is not finite")
        assert (warning.code, warning.param) == ("probe_failed", "head_start")
        assert ": a state is not finite; " in warning.message
