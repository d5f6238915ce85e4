"""hifi.errors: what messages quote, and the place that a refusal of data names."""

from __future__ import annotations

import pytest

from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    MissingColumnError,
    in_split,
    listed,
    quoted,
)


class TestDataError:
    @pytest.mark.parametrize(
        ("place", "text"),
        [
            ({}, "it is so"),
            ({"split": "train"}, "train: it is so"),
            ({"row": 3}, "row 3: it is so"),
            ({"split": "test", "row": 3, "column": "x"}, "test, row 3, column 'x': it is so"),
        ],
    )
    def test_names_the_known_parts_of_the_place(self, place, text: str):
        assert str(DataError("it is so", **place)) == text

    def test_gets_its_split_from_the_caller(self):
        with pytest.raises(DataError) as caught, in_split("validation"):
            raise DataError("it is so", row=2)
        assert caught.value.split == "validation"
        assert str(caught.value) == "validation, row 2: it is so"

    def test_keeps_the_split_that_it_names(self):
        with pytest.raises(DataError, match="test: it is so"), in_split("train"):
            raise DataError("it is so", split="test")

    def test_other_errors_pass_unchanged(self):
        with pytest.raises(KeyError), in_split("train"):
            raise KeyError("x")

    def test_a_missing_column_is_named_with_those_there_are(self):
        error = MissingColumnError("lable", there=["text", "label"], split="train", param="label")
        assert str(error) == (
            "train, column 'lable': no such column; the columns are: 'text', 'label'"
        )
        assert error.param == "label"

    def test_an_ambiguity_names_the_argument_to_set(self):
        error = AmbiguousTaskError("2 columns hold texts", param="text")
        assert str(error) == "train: 2 columns hold texts; choose with text=…"


class TestQuoted:
    @pytest.mark.parametrize(
        ("value", "text"),
        [("café", "'café'"), (1, "1"), ("a\nb\0", r"'a\nb\x00'"), ("\ud800", r"'\ud800'")],
    )
    def test_is_printable(self, value: object, text: str):
        assert quoted(value) == text

    def test_is_short(self):
        assert len(quoted("x" * 1000)) == 60

    def test_of_a_value_whose_repr_cannot_be_encoded(self):
        class Odd:
            def __repr__(self) -> str:
                return "\ud800"

        assert quoted(Odd()).encode() == rb"\ud800"


class TestListed:
    def test_names_the_first_of_many(self):
        assert listed(["a", "b"]) == "'a', 'b'"
        assert listed([str(number) for number in range(99)]).endswith("'19', …")
