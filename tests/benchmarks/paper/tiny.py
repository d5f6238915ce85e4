"""A tiny GLUE: folders of tasks with tiny texts, and the cells and lines of runs on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.cells import Cell
from benchmarks.paper.methods.base import Run
from benchmarks.paper.splits import draw_splits
from benchmarks.paper.tasks import TASKS
from tests.tiny_tasks import text_rows, write_jsonl

if TYPE_CHECKING:
    from benchmarks.paper.running import Workplace

CELL = Cell(
    backbone="tiny-bert",
    task="cola",
    shots="full",
    method="head-only",
    head_start="random",
    rates="usual",
    rate=0.02,
    seed=0,
    most_rows=40,
    epochs=2,
    least_steps=1,
    max_length=16,
)

HYPERPARAMETERS = {
    "seed": 0,
    "batch_size": 16,
    "max_length": 16,
    "epochs": 2,
    "learning_rate": 0.01,
}


def tiny_run(workplace: Workplace, task: str, *, head_start: str = "random", **changes: Any) -> Run:
    """Return a run of 40 rows for training and as many for validation, with a test split."""
    return Run(
        source=workplace.source,
        task=TASKS[task],
        splits=draw_splits(workplace.data, TASKS[task], shots="40", seed=0),
        head_start=head_start,
        hyperparameters={**HYPERPARAMETERS, **changes},
    )


def cell(**changes: Any) -> Cell:
    """Return a cell with these settings changed."""
    return replace(CELL, **changes)


def line(value: float | None, **changes: Any) -> dict[str, Any]:
    """Return a line of a result file with as much as tables and searches read."""
    return {
        **cell(**changes).describe(),
        "value": value,
        "learning_rate": changes.get("rate"),
        "validation": {"loss": 1.0},
        "trained_weights": 100,
        "stored_bytes": {"float32": 1000},
    }


def save_glue(root: Path, *, rows: int = 80) -> Path:
    """Write CoLA, RTE and STS-B of tiny texts; return the folder that holds ``data/``."""
    for task in ("cola", "rte", "stsb"):
        folder = root / "data" / "glue" / task
        folder.mkdir(parents=True)
        for seed, (split, count) in enumerate((("train", rows), ("validation", 12))):
            write_jsonl(folder / f"{split}.jsonl", [_row(task, r) for r in _texts(count, seed)])
    return root


def _texts(count: int, seed: int) -> list[dict[str, Any]]:
    return [{**row, "idx": n} for n, row in enumerate(text_rows(count, seed=seed, pair=True))]


def _row(task: str, row: dict[str, Any]) -> dict[str, Any]:
    if task == "cola":
        return {"sentence": row["first"], "label": row["label"], "idx": row["idx"]}
    label = row["label"] + 0.1 * (row["idx"] % 7) if task == "stsb" else row["label"]
    return {
        "sentence1": row["first"],
        "sentence2": row["second"],
        "label": label,
        "idx": row["idx"],
    }
