"""Run one cell and describe it in one line; work through all cells, beside other processes."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import processor, resident_megabytes, versions
from benchmarks.paper.cells import AUTO, Cell, ready_cells
from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.base import Metrics, Outcome, Run
from benchmarks.paper.splits import FULL, PER_CLASS, Splits, draw_splits, trial_splits
from benchmarks.paper.tasks import TASKS
from hifi.errors import TrainingDivergedError

if TYPE_CHECKING:
    from benchmarks.paper.results import Results
    from hifi.backbones.models import ModelSource

_BATCH = 32
_PAUSE = 1.0  # seconds between looks at cells that other processes are running


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where cells run.

    Attributes:
        data: the folder of the tasks' folders.
        source: the backbone.
    """

    data: Path
    source: ModelSource

    def run(self, cell: Cell, *, learning_rate: float | None) -> dict[str, Any]:
        """Run one cell.

        Returns:
            The line for the result file. A run that diverges has the ``value`` None and an
            ``error``.
        """
        task = TASKS[cell.task]
        splits = draw_splits(
            self.data, task, shots=cell.shots, seed=cell.seed, most_rows=cell.most_rows
        )
        if cell.kind == "trial":
            splits = trial_splits(splits, task, seed=cell.seed)
        run = Run(
            source=self.source,
            task=task,
            splits=splits,
            head_start=cell.head_start,
            hyperparameters=_hyperparameters(cell, splits, learning_rate=learning_rate),
        )
        before = _reset_peak()
        begin = time.perf_counter()
        try:
            found = _describe(cell, METHODS[cell.method].run(run))
        except TrainingDivergedError as error:
            found = {"value": None, "error": str(error), "learning_rate": learning_rate}
        rows = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        return {
            **cell.describe(),
            **found,
            "metric": task.metric,
            "rows": {name: None if each is None else len(each) for name, each in rows.items()},
            "batch_size": run.settings.batch_size,
            "total_seconds": round(time.perf_counter() - begin, 2),
            "megabytes": {"before": before, "peak": resident_megabytes(field="VmHWM")},
            "machine": processor(),
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def work(wanted: Sequence[Cell], results: Results, workplace: Workplace) -> None:
    """Run all cells that are not finished, and wait for those that other processes are running.

    Raises:
        HifiError: a cell cannot run; those that are finished are kept.
    """
    while True:
        finished = results.finished()
        open_cells = list(ready_cells(wanted, finished))
        if not open_cells:
            return
        if not any(_try(*each, results, workplace) for each in open_cells):
            time.sleep(_PAUSE)


def _try(cell: Cell, rate: float | None, results: Results, workplace: Workplace) -> bool:
    """Run a cell unless another process is running it or has finished it."""
    with results.claim(cell) as is_ours:
        if not is_ours or cell in results.finished():
            return is_ours
        line = workplace.run(cell, learning_rate=rate)
        results.append(line)
    value = "diverged" if line["value"] is None else f"{line['metric']} {line['value']:.4f}"
    print(
        f"{cell.kind} {cell.task} {cell.shots} {cell.method} from {cell.head_start}, "
        f"rate {line['learning_rate']}, seed {cell.seed}: {value}, {line['total_seconds']} s",
        flush=True,
    )
    return True


def _hyperparameters(cell: Cell, splits: Splits, *, learning_rate: float | None) -> dict[str, Any]:
    """Return the hyperparameters of a cell; those that the library is to choose are missing."""
    rows = len(splits.train)
    batch = rows if cell.shots == str(PER_CLASS) else min(_BATCH, rows)
    found: dict[str, Any] = {"seed": cell.seed, "max_length": cell.max_length}
    if cell.rates != AUTO or cell.shots == str(PER_CLASS):
        found["batch_size"] = batch
    if cell.epochs is not None and cell.least_steps is not None:
        found["epochs"] = max(cell.epochs, math.ceil(cell.least_steps / math.ceil(rows / batch)))
    if learning_rate is not None:
        found["learning_rate"] = learning_rate
    return found


def _describe(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """Return the part of a line that the method determines.

    ``value`` is the metric of the tables: on test for few rows, else on validation.
    """
    validation: Metrics = outcome.evaluations[outcome.best]
    is_few = cell.kind == "run" and cell.shots != FULL
    reported = outcome.test if is_few and outcome.test is not None else validation
    return {
        "value": reported[TASKS[cell.task].metric],
        "measured_on": "test" if reported is outcome.test else "validation",
        "validation": dict(validation),
        "test": None if outcome.test is None else dict(outcome.test),
        "evaluations": [dict(metrics) for metrics in outcome.evaluations],
        "best_evaluation": outcome.best,
        "learning_rate": outcome.learning_rate,
        "trained_epochs": outcome.epochs,
        "seconds": {name: round(value, 2) for name, value in outcome.seconds.items()},
        "trained_weights": outcome.trained_weights,
        "stored_bytes": dict(outcome.stored_bytes),
        "heads": None if outcome.heads is None else [list(head) for head in outcome.heads],
        "fingerprint": outcome.fingerprint,
        "warnings": list(outcome.warnings),
        "encoded": {name: dict(metrics) for name, metrics in outcome.encoded.items()},
    }


def _reset_peak() -> float:
    """Return freed memory to the system, reset the peak, and return the resident megabytes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_megabytes()
