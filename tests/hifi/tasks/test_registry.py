"""hifi.tasks: a task type is found by its name and declares its inputs."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from hifi.data import task_types as declared
from hifi.data.splits import load_split
from hifi.errors import TaskNotSupportedError
from hifi.tasks import TaskSpec, get_task, make_task, task_types
from hifi.tasks.classification import Classification
from hifi.tasks.image_classification import ImageClassification
from tests.tiny_tasks import image_rows, text_rows


class TestGetTask:
    def test_finds_every_type(self):
        assert set(task_types()) == {
            *("classification", "multi-label", "regression", "image-classification"),
            *("token-classification", "question-answering", "multiple-choice"),
        }
        for name in task_types():
            assert get_task(name).declaration.name == name

    def test_one_that_is_unknown(self):
        with pytest.raises(TaskNotSupportedError, match=r"'clasification' is unknown.*regression"):
            get_task("clasification")

    def test_one_that_is_not_built_yet(self):
        with pytest.raises(TaskNotSupportedError, match=r"'causal-lm' is not supported yet"):
            get_task("causal-lm")


class TestNewType:
    @pytest.mark.parametrize(
        ("base", "rows", "inputs"),
        [
            (ImageClassification, image_rows(4), ("image",)),
            (Classification, text_rows(4), ("text",)),
        ],
    )
    def test_needs_nothing_but_its_entry(
        self, base: type, rows: list, inputs: tuple, monkeypatch: pytest.MonkeyPatch
    ):
        declaration = replace(base.declaration, name="new", implementation=f"{__name__}:New")
        new = type("New", (base,), {"declaration": declaration})
        monkeypatch.setattr(sys.modules[__name__], "New", new, raising=False)
        monkeypatch.setitem(declared._TYPES, "new", declaration)
        task = make_task(TaskSpec(type="new"), load_split(rows, split="train"))
        assert isinstance(task, new)
        assert task.inputs == inputs
