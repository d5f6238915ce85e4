"""Run cells in processes of one thread each, which share them through the result file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.paper.results import Results
from benchmarks.paper.running import Workplace, work
from hifi.backbones.models import resolve_model
from hifi.errors import HifiError
from store.machine import end_with_parent

if TYPE_CHECKING:
    from benchmarks.paper.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the processes do together.

    Attributes:
        cells: to be finished.
        data: the folder of the tasks' folders.
        backbone: a folder, a name or a hub id.
        out: the result file.
    """

    cells: Sequence[Cell]
    data: Path
    backbone: str
    out: Path


def run(what: Work, *, processes: int, seconds: float | None = None) -> int:
    """Run the cells, and return the highest exit status of the processes.

    Args:
        what: the cells and where they run.
        processes: how many.
        seconds: end the processes after so long; finished cells are kept.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes below, before they import torch
    spawn = get_context("spawn")
    started = [spawn.Process(target=_run, args=(what,)) for _ in range(processes)]
    end = None if seconds is None else time.monotonic() + seconds
    for process in started:
        process.start()
    for process in started:
        process.join(None if end is None else max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.terminate()
            process.join()
    return max(abs(process.exitcode or 0) for process in started)


def _run(what: Work) -> None:
    """Run cells in this process, beside others; exit with an error's text."""
    end_with_parent(signal.SIGTERM)
    torch.set_num_threads(1)
    try:
        workplace = Workplace(data=what.data, source=resolve_model(what.backbone))
        with Results(what.out) as results:
            work(what.cells, results, workplace)
    except HifiError as error:
        sys.exit(f"{type(error).__name__}: {error}")
