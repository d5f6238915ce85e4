"""What selection costs beyond the forward passes that it cannot do without."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.data import MAX_LENGTH, MODEL, minilm, read_rows
from benchmarks.rows import Row, print_rows
from hifi.backbones.models import resolve_model
from hifi.selection.scoring import sample_indices, select_heads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPETITIONS = 5
SAMPLES = 300
BATCH_SIZE = 32


def calibration_batches() -> list[dict[str, Tensor]]:
    """Draw the samples from MRPC and batch them by length, short ones first."""
    rows = read_rows("mrpc", "train")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL).path)
    samples = [
        tokenizer(
            rows[index]["sentence1"],
            rows[index]["sentence2"],
            truncation=True,
            max_length=MAX_LENGTH,
        )
        for index in sample_indices(len(rows), n=SAMPLES, seed=0)
    ]
    samples.sort(key=lambda sample: len(sample["input_ids"]))
    return [
        dict(tokenizer.pad(samples[start : start + BATCH_SIZE], return_tensors="pt"))
        for start in range(0, SAMPLES, BATCH_SIZE)
    ]


def interleaved(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """Time tasks that take turns.

    Returns:
        Median seconds of each over :data:`REPETITIONS`, after a warm-up turn.
    """
    seconds: list[list[float]] = [[] for _ in tasks]
    for turn in range(REPETITIONS + 1):
        for task, taken in zip(tasks, seconds, strict=True):
            begin = time.perf_counter()
            task()
            if turn:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in seconds]


def main() -> list[Row]:
    """Measure ``select_heads`` against bare forward passes over the same batches."""
    batches = calibration_batches()
    model = minilm().eval()

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model.base_model(**batch)

    def select() -> None:
        select_heads(model, batches)

    bare, selection = interleaved([forward, select])
    label = f"selection, n={SAMPLES} MRPC samples, MiniLM, batch {BATCH_SIZE}, float32: "
    return [
        Row(f"{label}bare forward passes", bare, unit="s"),
        Row(f"{label}select_heads", selection, unit="s"),
        Row(f"{label}select_heads / bare forward passes", selection / bare, "≤ 1.2"),
    ]


if __name__ == "__main__":
    print_rows(main())
