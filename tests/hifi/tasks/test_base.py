"""hifi.tasks.base: the user's description of a task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hifi.data.spec import TaskSpec
from hifi.errors import InvalidArgumentError
from hifi.tasks.base import Batch, digest_of


class TestTaskSpec:
    @pytest.mark.parametrize(
        "spec",
        [
            TaskSpec.of("classification", text=["a", "b"], label="c", metric="f1"),
            TaskSpec.of("classification", text=("a", "b"), label="c", metric="f1"),
            TaskSpec.of(
                {"type": "classification", "text": ["a", "b"], "label": "c", "metric": "f1"}
            ),
            TaskSpec.of({"type": "classification", "text": ["a", "b"]}, label="c", metric="f1"),
            TaskSpec.of(TaskSpec(type="classification", text=("a", "b")), label="c", metric="f1"),
            TaskSpec.of(
                {"type": "classification", "text": ["a", "b"], "label": "c", "image": None},
                text=["a", "b"],
                metric="f1",
            ),
        ],
    )
    def test_all_spellings_are_equal(self, spec: TaskSpec):
        assert spec == TaskSpec(type="classification", text=("a", "b"), label="c", metric="f1")
        assert spec.columns == ("a", "b", "c")
        assert spec.names_all_columns

    def test_one_text_column_needs_no_list(self):
        assert TaskSpec.of(text="a").text == TaskSpec.of({"text": "a"}).text == ("a",)

    def test_all_fields_may_be_omitted(self):
        assert TaskSpec.of() == TaskSpec.of(None) == TaskSpec.of({}) == TaskSpec()
        assert not TaskSpec().names_all_columns
        assert TaskSpec().columns == ()

    @pytest.mark.parametrize(
        ("said", "named"),
        [
            ({"type": "classification", "text": "a"}, False),
            ({"type": "classification", "label": "b"}, False),
            ({"text": "a", "label": "b"}, True),
            ({"image": "a", "label": "b"}, True),
        ],
    )
    def test_knows_whether_it_names_all_columns(self, said: dict, named: bool):
        assert TaskSpec.of(said).names_all_columns is named

    def test_columns_in_any_sequence_are_the_same(self):
        assert TaskSpec(text=["a", "b"]) == TaskSpec(text=("a", "b"))  # type: ignore[arg-type]
        assert TaskSpec(text="ab").text == ("ab",)  # type: ignore[arg-type]
        assert TaskSpec.of(text=np.array(["a", "b"])).text == ("a", "b")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("said", "param"),
        [
            ({"task": 5}, "task"),
            ({"task": ["classification"]}, "task"),
            ({"task": {"type": []}}, "type"),
            ({"task": {5: "a"}}, "task"),
            ({"task": {"text": 5}}, "text"),
            ({"text": 5}, "text"),
            ({"text": [1, 2]}, "text"),
            ({"text": b"ab"}, "text"),
            ({"text": [["a"], ["b"]]}, "text"),
            ({"label": 5}, "label"),
            ({"label": np.array([1, 2])}, "label"),
            ({"image": b"a"}, "image"),
            ({"metric": ["f1"]}, "metric"),
        ],
    )
    def test_a_value_that_is_no_name_is_refused(self, said: dict, param: str):
        with pytest.raises(InvalidArgumentError) as caught:
            TaskSpec.of(**said)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("said", "param"),
        [
            ({"task": {"type": "classification", "column": "a"}}, "task"),
            ({"task": {"label": "a"}, "label": "b"}, "label"),
            ({"task": {"text": "a"}, "text": ["a", "b"]}, "text"),
            ({"task": {"metric": "f1"}, "metric": "accuracy"}, "metric"),
            ({"text": ["a", "b", "c"]}, "text"),
            ({"text": ["a", "a"]}, "text"),
            ({"text": "a", "image": "b"}, "image"),
            ({"text": "a", "label": "a"}, "label"),
            ({"image": "a", "label": "a"}, "label"),
        ],
    )
    def test_a_contradiction_is_refused(self, said: dict, param: str):
        with pytest.raises(InvalidArgumentError) as caught:
            TaskSpec.of(**said)
        assert caught.value.param == param


class TestBatch:
    def test_pixels_take_the_dtype_of_the_model_and_tokens_do_not(self):
        inputs = {"pixel_values": torch.ones(2, 3), "input_ids": torch.ones(2, dtype=torch.int64)}
        moved = Batch(inputs, torch.ones(2)).to(torch.device("cpu"), dtype=torch.bfloat16)
        assert moved.inputs["pixel_values"].dtype == torch.bfloat16
        assert moved.inputs["input_ids"].dtype == torch.int64
        assert moved.targets.dtype == torch.float32


class TestDigest:
    def test_knows_where_one_entry_ends(self):
        digests = set()
        for parts in ((b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b"")):
            digests.add(digest_of(parts))
        assert len(digests) == 4
