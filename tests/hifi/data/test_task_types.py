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

    layouts = declared.layouts
    counts = [sum(columns.most for columns in each.inputs) for each in layouts]
    inputs = (
        code(*(field.name for field in each.request.fields[:count]))
        for each, count in zip(layouts, counts, strict=True)
    )
    cells = (
        code(declared.name),
        "; or ".join(each.words for each in layouts),
        "; or ".join(each.label.words for each in layouts),
        code(*declared.metrics),
        "; or ".join(inputs),
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
        for layout in declared.layouts:
            fields = layout.request.fields
            one_each = [columns for columns in layout.inputs if columns.field != "choices"]
            assert len(fields) >= sum(columns.most for columns in one_each)
            assert fields[0].is_required
            assert {field.kind for field in fields} <= {declared.input_kind, "words", "choices"}

    def test_of_one_name_are_one_request_and_one_answer(self):
        requests = {request for each in task_types() for request in each.requests}
        for parts in (requests, {each.answer for each in task_types()}):
            assert len(parts) == len({part.name for part in parts})
        shapes = {frozenset(f.name for f in t.answer.fields): t.answer for t in task_types()}
        assert len(shapes) == len({t.answer for t in task_types()})

    def test_have_their_metrics_listed_once(self):
        assert metric_names() == (
            *("accuracy", "f1", "matthews"),
            *("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy"),
            *("pearson", "spearman"),
            *("precision", "recall"),
            "exact_match",
        )

    def test_one_that_is_not_there(self):
        with pytest.raises(TaskNotSupportedError, match=r"'causal-lm' is not supported yet.*regr"):
            find_task_type("causal-lm")


def test_the_documentation_has_a_row_for_each():
    lines = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("# Task types")
    rows = [line for line in lines[start : lines.index("", start + 4)] if line.startswith("| `")]
    assert rows == [row_of(declared) for declared in task_types()]
