"""hifi.data.columns: what a task reads out of a split, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from hifi.data.columns import (
    CELLS_FEATURE,
    has_unanswered,
    is_labelled,
    label_indices,
    label_order,
    profile_split,
    read_images,
    read_labels,
    read_targets,
    read_texts,
)
from hifi.data.images import decode_image
from hifi.errors import DataError
from tests.tiny_tasks import png

if TYPE_CHECKING:
    from hifi.data.profile import ColumnProfile


def column(*values, kind: pa.DataType | None = None) -> Dataset:
    return Dataset(pa.table({"c": pa.array(values, type=kind)}))


def cells(*values: str) -> Dataset:
    table = pa.table({"c": pa.array(values, pa.string())})
    return Dataset(table, info=datasets.DatasetInfo(features=Features(c=CELLS_FEATURE)))


def profiled(dataset: Dataset) -> ColumnProfile:
    (found,) = profile_split(dataset).columns
    return found


def error_of(read, dataset: Dataset) -> DataError:
    with pytest.raises(DataError) as caught:
        read(dataset, "c", split="validation")
    assert (caught.value.split, caught.value.column) == ("validation", "c")
    return caught.value


class TestTexts:
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
    def test_are_read_as_they_are(self, kind: pa.DataType):
        dataset = column(" a ", "b\n", kind=kind)
        assert profiled(dataset).kind == "text"
        assert read_texts(dataset, "c", split="train") == [" a ", "b\n"]

    @pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u3000"])
    def test_an_empty_one_names_its_row(self, empty: str):
        error = error_of(read_texts, column("a", "b", empty))
        assert (error.row, error.reason) == (3, "the text is empty")

    def test_a_missing_one_names_its_row(self):
        assert error_of(read_texts, column("a", None)).row == 2
        assert error_of(read_texts, column(None, None)).row == 1

    @pytest.mark.parametrize("value", [1, 0.5, True, ["a"], {"a": "b"}, b"a"])
    def test_another_type_is_named(self, value):
        dataset = column(value)
        assert profiled(dataset).kind != "text"
        assert profiled(dataset).type in error_of(read_texts, dataset).reason

    def test_a_view_of_a_data_set_is_read_in_its_own_order_and_format(self):
        dataset = column("a", "b", "c").select([2, 0])
        dataset.set_format("numpy")
        assert read_texts(dataset, "c", split="train") == ["c", "a"]


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "order"),
        [
            ((10, 9, -1, 9), [-1, 9, 10]),
            (("b", "a", "B"), ["B", "a", "b"]),
            (("10", "9"), ["10", "9"]),
            ((True, False), ["false", "true"]),
        ],
    )
    def test_are_ordered_by_value(self, values, order: list):
        dataset = column(*values)
        assert profiled(dataset).kind in ("text", "integer", "boolean")
        labels = read_labels(dataset, "c", split="train")
        assert label_order(dataset, "c", labels, split="train") == order
        indices = label_indices(labels, known=order, column="c", split="train")
        assert [order[index] for index in indices] == labels

    def test_names_of_a_class_label_keep_their_order(self):
        features = Features({"c": ClassLabel(names=["zebra", "ape", "unseen"])})
        dataset = Dataset.from_dict({"c": [1, 0, 1]}, features=features)
        labels = read_labels(dataset, "c", split="train")
        assert labels == ["ape", "zebra", "ape"]
        order = label_order(dataset, "c", labels, split="train")
        assert order == ["zebra", "ape", "unseen"]

    def test_a_number_without_a_name_is_no_label(self):
        features = Features({"c": ClassLabel(names=["a", "b"])})
        dataset = Dataset.from_dict({"c": [0, 1, -1]}, features=features)
        assert error_of(read_labels, dataset).row == 3

    @pytest.mark.parametrize(
        "values", [(0, 1, None), ("a", "b", ""), ("a", "b", "  "), (1.0, 2.0, float("nan"))]
    )
    def test_a_missing_one_names_its_row(self, values):
        if isinstance(values[0], float):
            values = (None, *values)
        error = error_of(read_labels, column(*values))
        assert error.row == (1 if values[0] is None else 3)

    @pytest.mark.parametrize("value", [0.5, [1], {"a": 1}, b"x"])
    def test_another_type_is_named(self, value):
        error = error_of(read_labels, column(value, value))
        assert error.row == 1
        assert profiled(column(value)).type in error.reason

    def test_one_class_is_not_enough(self):
        dataset = column("spam", "spam")
        with pytest.raises(DataError, match=r"'spam'.*at least two") as caught:
            label_order(dataset, "c", ["spam", "spam"], split="train")
        assert caught.value.column == "c"

    def test_an_unknown_one_is_named_with_its_row_and_the_known_ones(self):
        with pytest.raises(DataError) as caught:
            label_indices(["a", "b", "d"], known=["a", "b"], column="c", split="validation")
        assert (caught.value.split, caught.value.row) == ("validation", 3)
        assert all(name in caught.value.reason for name in ("'d'", "'a', 'b'"))

    def test_an_unknown_one_that_looks_like_a_known_one_says_so(self):
        with pytest.raises(DataError, match=r"known are 'a', 'b'; it looks like 'b'$"):
            label_indices(["a", " B\u200b"], known=["a", "b"], column="c", split="validation")

    def test_an_integer_and_its_text_are_different_labels(self):
        with pytest.raises(DataError, match="'1' does not occur"):
            label_indices(["1"], known=[0, 1], column="c", split="validation")


class TestLabelled:
    MINUS_ONES = (
        column(-1, -1),
        column(-1.0, -1.0),
        column("-1", "-1.0"),
        column(" -1", "-1 "),
        cells("-1", "-1"),
        cells("-1.0", "-1"),
        cells(" -1", "-1 "),
    )

    @pytest.mark.parametrize("split", MINUS_ONES)
    @pytest.mark.parametrize("known", [(-1, 0, 1), ("-1", "0", "x"), ("-1.0", "0.0", "x")])
    def test_is_a_split_of_minus_ones_if_that_is_a_class(self, split: Dataset, known):
        assert is_labelled(split, "c", known=known)

    @pytest.mark.parametrize("split", MINUS_ONES)
    @pytest.mark.parametrize("known", [(), (0, 1), ("a", "b"), ("a", "NA")])
    def test_is_not_a_split_of_minus_ones_else(self, split: Dataset, known):
        assert not is_labelled(split, "c", known=known)

    @pytest.mark.parametrize("split", [column(None, kind=pa.string()), column("", " "), cells("")])
    def test_is_not_a_split_without_any_value(self, split: Dataset):
        assert not is_labelled(split, "c", known=(-1, 0, 1))

    def test_minus_one_is_no_label_where_numbers_have_names(self):
        names = ("-1", "0", "1")
        features = Features(c=ClassLabel(names=names))
        for values, found in (([-1, -1], False), ([0, 0], True)):
            split = Dataset.from_dict({"c": values}, features=features)
            assert is_labelled(split, "c", known=names) is found


class TestTargets:
    @pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64()])
    def test_are_numbers(self, kind: pa.DataType):
        dataset = column(1, 2, kind=kind)
        assert read_targets(dataset, "c", split="train") == [1.0, 2.0]
        assert (profiled(dataset).kind == "whole") == pa.types.is_floating(kind)

    @pytest.mark.parametrize(
        "value", [None, float("nan"), float("inf"), -float("inf"), 1e39], ids=str
    )
    def test_one_that_is_no_finite_number_names_its_row(self, value):
        assert error_of(read_targets, column(0.5, value, 1.0)).row == 2

    @pytest.mark.parametrize("value", ["0.5", True, [0.5]])
    def test_another_type_is_named(self, value):
        error = error_of(read_targets, column(value))
        assert error.row == 1
        assert f"this column holds {profiled(column(value)).type}" in error.reason


class TestCells:
    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (("0", "1", "-12"), "int64"),
            ((" 0", "1\t"), "int64"),
            (("0", "", "NA", "null"), "int64"),
            (("9" * 18,), "int64"),
            (("0.50", "1"), "float64"),
            (("1e-3", ".5", "5.", "+1.5", "-2.5E+4", "inf", "nan"), "float64"),
            (("007", "0.5"), "float64"),
            (("true", "false", ""), "bool"),
            (("True",), "bool"),
            (("FALSE", "TRUE"), "bool"),
            (("", "NA"), "null"),
            # what an integer, a number or a boolean would not give back
            (("01", "1"), "string"),
            (("+1", "-1"), "string"),
            (("-0", "0"), "string"),
            (("9" * 25,), "string"),
            (("1", "?"), "string"),
            (("0,5",), "string"),
            (("1_000",), "string"),
            (("\u0661",), "string"),
            (("0x1F",), "string"),
            (("1\n",), "string"),
            (("True", "true"), "string"),
            (("2024-05-01",), "string"),
            (("12:30",), "string"),
            (("yes", "NA"), "string"),
        ],
    )
    def test_look_like_what_all_of_them_could_be(self, values: tuple[str, ...], kind: str):
        dataset = cells(*values)
        found = profiled(dataset)
        assert (found.type, found.are_cells) == (kind, True)
        assert (found.kind == "text") == (kind == "string")
        assert (found.kind in ("float", "whole")) == (kind == "float64")
        assert (found.kind in ("text", "integer", "boolean")) == (
            kind in ("string", "int64", "bool")
        )

    @pytest.mark.parametrize(
        "values", [("0012", "7"), ("12", "7"), ("0.50", ".5"), ("True", "False"), ("NA", "null")]
    )
    def test_are_texts_as_they_are(self, values: tuple[str, ...]):
        assert read_texts(cells(*values), "c", split="train") == list(values)

    def test_that_are_empty_are_no_texts(self):
        assert error_of(read_texts, cells("12", "")).row == 2
        assert error_of(read_texts, cells("", "")).row == 1

    @pytest.mark.parametrize(
        ("values", "labels"),
        [
            (("0", " 1", "-3"), [0, 1, -3]),
            (("01", "1"), ["01", "1"]),
            (("+1", "-1"), ["+1", "-1"]),
            (("True", "False"), ["true", "false"]),
            (("True", "true"), ["True", "true"]),
            (("1", "2", "?"), ["1", "2", "?"]),
            ((" a", "NA"), [" a", "NA"]),
        ],
    )
    def test_are_classes_that_no_two_spellings_share(self, values, labels: list):
        assert read_labels(cells(*values), "c", split="train") == labels

    @pytest.mark.parametrize("missing", ["", " ", "NA", "nan"])
    @pytest.mark.parametrize("present", ["0", "True"])
    def test_a_missing_label_among_numbers_names_its_row(self, present: str, missing: str):
        error = error_of(read_labels, cells(present, missing))
        assert (error.row, error.reason) == (2, "the label is missing")

    def test_a_missing_label_among_texts_names_its_row(self):
        error = error_of(read_labels, cells("a", ""))
        assert (error.row, error.reason) == (2, "the label is empty")

    def test_whole_numbers_may_have_a_point_and_zeros(self):
        assert read_labels(cells("1.0", " 2", "1", "2."), "c", split="train") == [1, 2, 1, 2]
        assert read_labels(column(1.0, 2.0), "c", split="train") == [1, 2]

    @pytest.mark.parametrize("other", ["1E3", "1e0", "+1", "01.0", ".0", "-0.0", "1" * 25 + ".0"])
    def test_one_number_in_another_notation_makes_all_of_them_texts(self, other: str):
        labels = ["1000", "2.0", other]
        assert profiled(cells(*labels)).kind == "whole"  # regression targets in any notation
        assert read_labels(cells(*labels), "c", split="train") == labels
        read = read_labels(cells(*labels), "c", split="validation", known=labels)
        assert read == labels
        error = error_of(read_labels, cells("1.0", other, "NA"))
        assert (error.row, error.reason) == (3, "the label is missing")

    def test_a_file_with_types_and_one_without_agree(self):
        known = read_labels(cells("1000", "1E3", "x"), "c", split="train")
        assert read_labels(column(1000), "c", split="validation", known=known) == ["1000"]
        known = read_labels(cells("0", "1"), "c", split="train")
        assert read_labels(column("1"), "c", split="validation", known=known) == [1]
        known = read_labels(cells("True", "False"), "c", split="train")
        read = read_labels(column(True, False), "c", split="validation", known=known)
        assert read == ["true", "false"]

    def test_numbers_with_fractions_are_no_classes(self):
        error = error_of(read_labels, cells("0.5", "1"))
        assert (error.row, "float64" in error.reason) == (1, True)

    @pytest.mark.parametrize(
        ("known", "values", "labels"),
        [
            ((0, 1), ("1", " 0"), [1, 0]),
            (("1", "2", "?"), ("1", "2"), ["1", "2"]),  # these would look like integers
            (("0.5", "?"), ("0.5",), ["0.5"]),  # and this one like a number
            (("01", "1"), ("1",), ["1"]),
            (("NA", "a"), ("NA", "NA"), ["NA", "NA"]),
            (("false", "true"), ("True", "FALSE", "true"), ["true", "false", "true"]),
            (("False", "maybe"), ("False", "False"), ["False", "False"]),
            ((" a", "b"), (" a",), [" a"]),
            ((0, 1), ("1", "01", "?"), [1, "01", "?"]),  # two that are refused as unknown
            (("a", "b"), ("a", " a", "A"), ["a", " a", "A"]),
            (("no", "yes"), ("True", "Yes"), ["True", "Yes"]),
        ],
    )
    def test_of_validation_are_read_by_the_classes_of_train(self, known, values, labels: list):
        read = read_labels(cells(*values), "c", split="validation", known=known)
        assert repr(read) == repr(labels)

    def test_of_validation_may_be_missing(self):
        with pytest.raises(DataError, match=r"row 2, .*the label is missing"):
            read_labels(cells("1", "NA"), "c", split="validation", known=(0, 1))

    @pytest.mark.parametrize(
        ("cell", "target"),
        [("0.50", 0.5), ("007", 7.0), ("+1e-3", 1e-3), (" .5", 0.5), ("5.", 5.0), ("12", 12.0)],
    )
    @pytest.mark.parametrize("other", ["1", "0.5", "007"])
    def test_are_targets_in_any_notation(self, cell: str, target: float, other: str):
        assert read_targets(cells(other, cell), "c", split="train")[1] == target

    @pytest.mark.parametrize(
        ("cell", "reason"),
        [
            ("", "missing"),
            ("NA", "missing"),
            ("nan", "missing"),
            ("inf", "not a finite number"),
            ("-Infinity", "not a finite number"),
            ("1e39", "not a finite number"),
            ("1e999", "not a finite number"),
            ("0,5", "'0,5'"),
            ("1_000", "'1_000'"),
            ("true", "'true'"),
        ],
    )
    def test_that_are_no_targets_name_their_row(self, cell: str, reason: str):
        error = error_of(read_targets, cells("0.5", cell))
        assert error.row == 2
        assert reason in error.reason

    def test_keep_their_mark_through_what_data_sets_offer(self):
        dataset = cells("1", "2", "3")
        for view in (
            dataset.select([1, 0]),
            dataset.select_columns(["c"]),
            dataset.shuffle(seed=0),
            dataset.with_format("numpy"),
            datasets.concatenate_datasets([dataset, dataset]),
        ):
            assert profiled(view).type == "int64"
            assert profiled(view).are_cells
            assert all(isinstance(label, int) for label in read_labels(view, "c", split="train"))

    def test_a_mark_on_another_type_means_nothing(self):
        features = Features(c=Value("int64", id=CELLS_FEATURE.id))
        dataset = Dataset.from_dict({"c": [1, 2]}, features=features)
        assert (profiled(dataset).type, profiled(dataset).are_cells) == ("int64", False)
        assert read_labels(dataset, "c", split="train") == [1, 2]


class TestImages:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_are_decoded_to_rgb(self, mode: str):
        image = decode_image(png(7, mode=mode))
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert np.asarray(image)[0, 0, 0] == 7

    @pytest.mark.parametrize(
        "dataset",
        [
            column({"bytes": png(1), "path": "/etc/passwd"}),
            column(png(1)),
            Dataset.from_dict({"c": [Image.new("L", (8, 8), 1)]}),
        ],
        ids=["struct", "binary", "Image"],
    )
    def test_are_found_in_every_form(self, dataset: Dataset):
        assert profiled(dataset).kind == "image"
        (encoded,) = read_images(dataset, "c", split="train")
        assert decode_image(encoded).getpixel((0, 0)) == (1, 1, 1)

    def test_a_path_is_not_followed(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(1))
        images = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}]
        struct = column(*images)
        for dataset in (struct, struct.cast_column("c", datasets.Image())):
            error = error_of(read_images, dataset)
            assert error.row == 2
            assert "not followed" in error.reason

    @pytest.mark.parametrize("broken", [b"", b"no image", png(1)[:-30], png(1)[:20]])
    def test_a_broken_one_names_its_row(self, broken: bytes):
        assert error_of(read_images, column(png(1), png(2), broken)).row == 3

    def test_a_bomb_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        assert error_of(read_images, column(png(1))).row == 1

    def test_another_type_is_named(self):
        assert "int64" in error_of(read_images, column(1)).reason
        features = Features({"c": Value("string")})
        assert profiled(Dataset.from_dict({"c": ["a.png"]}, features=features)).kind == "text"


class TestHasUnanswered:
    ANSWERED: ClassVar[dict[str, Any]] = {"text": ["a"], "answer_start": [0]}
    EMPTY: ClassVar[dict[str, Any]] = {"text": [], "answer_start": []}

    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            ([ANSWERED, ANSWERED], False),
            ([ANSWERED, EMPTY], True),
            ([ANSWERED, None], True),
            ([[{"text": "a", "answer_start": 0}], []], True),
            ([[{"text": "a", "answer_start": 0}]] * 2, False),
            ([{"other": 1}] * 2, True),  # no column of answers, which its reading refuses
        ],
    )
    def test_of_both_forms(self, cells: list[Any], expected: bool):
        dataset = Dataset.from_list([{"answers": cell} for cell in cells])
        assert has_unanswered(dataset, "answers") is expected
