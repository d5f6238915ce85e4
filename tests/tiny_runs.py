"""Fine-tunes of a tiny model that take a second, and helpers to check them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hifi import finetune
from hifi.training.events import Control, TrainingEvent
from tests.tiny_tasks import text_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hifi.training.finetuning import FinetuneResult

# 3 steps an epoch, 6 in all.
SMALL = {
    "k": 1,
    "n_samples": 10,
    "epochs": 2,
    "learning_rate": 3e-4,
    "batch_size": 8,
    "max_length": 16,
}
TRAIN, VALIDATION = text_rows(24, seed=1), text_rows(12, seed=2)
STEPS = 6


def run(backbone: Path, /, **arguments: Any) -> FinetuneResult:
    """Fine-tune on the rows above in float32, with these arguments changed."""
    defaults = {"model": backbone, "train": TRAIN, "validation": VALIDATION, "precision": "float32"}
    return finetune(**{**defaults, **SMALL, **arguments})


def file_of(result: FinetuneResult, folder: Path) -> bytes:
    """Save a run's head delta; return the file's bytes."""
    path = folder / f"{time.monotonic_ns()}.safetensors"
    result.delta.save(path)
    return path.read_bytes()


def record(heard: list[TrainingEvent]) -> Callable[[TrainingEvent], None]:
    """Return an ``on_event`` that collects events."""
    return heard.append


def stop_at(kind: str, step: int, answer: Control) -> Callable[[TrainingEvent], Control]:
    """Return an ``on_event`` that returns ``answer`` at one event, else CONTINUE."""

    def on_event(event: TrainingEvent) -> Control:
        return answer if (event.kind, event.step) == (kind, step) else Control.CONTINUE

    return on_event
