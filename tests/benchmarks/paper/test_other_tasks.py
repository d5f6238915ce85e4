"""Tasks other than those of Tab. 2: every method of Tab. 6 trains and measures them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.cells import Request
from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.base import Run
from benchmarks.paper.splits import Splits, draw_splits
from benchmarks.paper.tasks import TASKS, PaperTask
from hifi.backbones.models import resolve_model
from hifi.errors import InvalidArgumentError
from tests.benchmarks.paper.tiny import HYPERPARAMETERS
from tests.task_types.cases import CASES, Case
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import write_jsonl

OTHERS = [name for name, task in TASKS.items() if not task.is_of_table_2]
METHODS_OF_TABLE_6 = ("hifi-default", "probe", "lora-qv", "full", "hifi-random")


def case_of(task: PaperTask) -> Case:
    return next(case for case in CASES if case.type == task.type)


def named(rows: list[dict[str, Any]], *, case: Case, task: PaperTask) -> list[dict[str, Any]]:
    """Return a case's rows with the columns of a task of the tables."""
    if task.name == "swag":
        return [
            {
                "startphrase": row["text"],
                **{f"ending{number}": row["choices"][number % 3] for number in range(4)},
                "label": row["label"],
            }
            for row in rows
        ]
    own = {field: names for field, names in case.task.items() if field != "type"}
    names = _columns(own), _columns(task.columns)
    return [{new: row[old] for old, new in zip(*names, strict=True)} for row in rows]


def _columns(by_field: Mapping[str, Any]) -> list[str]:
    return [
        name
        for field in sorted(by_field)
        for name in ([by_field[field]] if isinstance(by_field[field], str) else by_field[field])
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.mark.parametrize("method", METHODS_OF_TABLE_6)
@pytest.mark.parametrize("name", OTHERS)
def test_is_trained_and_measured(name: str, method: str, backbone: Path):
    task = TASKS[name]
    case, chosen = case_of(task), METHODS[method]
    run = Run(
        source=resolve_model(str(backbone)),
        task=task,
        splits=Splits(
            *(named(case.rows(*each), case=case, task=task) for each in ((40, 1), (20, 2)))
        ),
        head_start="probe" if "probe" in chosen.head_starts else chosen.head_starts[0],
        hyperparameters={**HYPERPARAMETERS, "max_length": 32},
    )
    outcome = chosen.run(run)
    values = [metrics[task.metric] for metrics in outcome.evaluations]
    assert all(0 <= value <= 1 for value in values)
    assert values[outcome.best] == max(values)
    assert all(math.isfinite(metrics["loss"]) for metrics in outcome.evaluations)


def test_one_file_is_divided_by_the_seed(tmp_path: Path):
    rows = [{"place": place} for place in range(50)]
    (tmp_path / "swag").mkdir()
    write_jsonl(tmp_path / "swag" / "validation_500.jsonl", rows)
    first, same, other = (
        draw_splits(tmp_path, TASKS["swag"], shots="full", seed=seed) for seed in (0, 0, 1)
    )
    assert (len(first.train), len(first.validation), first.test) == (35, 15, None)
    everything = first.train + first.validation
    assert sorted(row["place"] for row in everything) == list(range(50))
    assert (same.train, same.validation) == (first.train, first.validation)
    assert other.validation != first.validation


@pytest.mark.parametrize("name", OTHERS)
def test_few_rows_are_refused(name: str):
    request = Request(
        backbone="tiny-bert",
        tasks=[name],
        methods=["probe"],
        seeds=[0],
        shots=["64"],
        head_starts=["own"],
        rates="search",
        most_rows=None,
        epochs=3,
        least_steps=1,
        max_length=32,
    )
    with pytest.raises(InvalidArgumentError, match="full with"):
        request.cells()
