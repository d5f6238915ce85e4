"""hifi.data.task_types: declarations that fit together, and the one table of them in the docs."""

from __future__ import annotations

import inspect

import pytest

from hifi.data.task_types import TaskType, find_task_type, metric_names, task_types
from hifi.errors import TaskNotSupportedError
from hifi.tasks import get_task
from hifi.tasks.base import Task
from tests.root import ROOT

TYPES = pytest.mark.parametrize("declared", task_types(), ids=lambda each: each.name)


def row_of(declared: TaskType) -> str:
    """Write a task type's row of the documentation."""

    def code(*names: str) -> str:
        return ", ".join(f"`{name}`" for name in names)

    cells = (
        *(code(declared.name), declared.inputs.words, declared.label.words),
        *(code(*declared.metrics), code(*(field.name for field in declared.request.fields))),
        code(*(field.name for field in declared.answer.fields)),
    )
    return f"| {' | '.join(cells)} |"


class TestDeclarations:
    @TYPES
    def test_name_a_class_that_is_whole(self, declared: TaskType):
        task = get_task(declared.name)
        assert issubclass(task, Task)
        assert not inspect.isabstract(task)
        assert task.declaration is declared is find_task_type(declared.name)

    @TYPES
    def test_take_a_field_for_every_input_column(self, declared: TaskType):
        fields = declared.request.fields
        assert len(fields) == declared.inputs.most
        assert fields[0].is_required
        assert {field.kind for field in fields} == {declared.input_kind}

    def test_of_one_name_are_one_request_and_one_answer(self):
        for parts in ({t.request for t in task_types()}, {t.answer for t in task_types()}):
            assert len(parts) == len({part.name for part in parts})
        shapes = {frozenset(f.name for f in t.answer.fields): t.answer for t in task_types()}
        assert len(shapes) == len({t.answer for t in task_types()})

    def test_have_their_metrics_listed_once(self):
        assert metric_names() == (
            *("accuracy", "f1", "matthews"),
            *("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy"),
            *("pearson", "spearman"),
        )

    def test_one_that_is_not_there(self):
        with pytest.raises(TaskNotSupportedError, match=r"'causal-lm' is not supported yet.*regr"):
            find_task_type("causal-lm")


def test_the_documentation_has_a_row_for_each():
    lines = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("# Task types")
    rows = [line for line in lines[start : lines.index("", start + 4)] if line.startswith("| `")]
    assert rows == [row_of(declared) for declared in task_types()]
