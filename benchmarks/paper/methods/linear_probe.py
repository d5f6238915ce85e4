"""The library's linear probe, alone and as the start of a task head."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.paper.methods.base import (
    Outcome,
    Run,
    encode,
    evaluate,
    file_bytes,
    logits_by,
)
from hifi.errors import ModelError
from hifi.training.head_start import start_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared


def run_probe(run: Run) -> Outcome:
    """Fit a probe and measure it."""
    ready = run.prepare()
    begin = time.perf_counter()
    parameters = start_from_probe(ready, run.settings)
    seconds = time.perf_counter() - begin
    logits = logits_by(ready.loaded.model.eval(), ready.data.task)
    validation = ready.data.validation
    assert validation is not None  # noqa: S101 - every run has one
    rows = run.splits.test
    test = None if rows is None else encode(ready, rows, split="test")
    return Outcome(
        evaluations=[evaluate(ready, validation, logits)],
        best=0,
        test=None if test is None else evaluate(ready, test, logits),
        seconds={"selection": 0.0, "training": seconds},
        trained_weights=sum(value.numel() for value in parameters.values()),
        stored_bytes={"float32": file_bytes(parameters)},
        fingerprint=ready.fingerprint,
    )


def start_from_probe(ready: Prepared, settings: Hyperparameters) -> Mapping[str, Tensor]:
    """Start the task head from a probe, and return its parameters.

    Raises:
        ModelError: no probe could be fitted.
    """
    started = start_head(ready, settings=settings)
    if not started.parameters:
        reasons = "; ".join(warning.message for warning in started.warnings)
        raise ModelError(f"{ready.source.name}: the task head has no start from a probe: {reasons}")
    return started.parameters
