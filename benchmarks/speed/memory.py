"""Peak memory of training above the loaded model, each method in a fresh process."""

from __future__ import annotations

import gc
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.data import minilm, mrpc_batches
from benchmarks.machine import resident_megabytes
from benchmarks.rows import Row, print_rows
from benchmarks.speed.methods import prepare
from benchmarks.speed.training import LEARNING_RATE, NO_DROPOUT, train

REPETITIONS = 3


def peak(name: str, dtype: str) -> float:
    """Train a few steps, including the longest batch; return the peak MB above the loaded model."""
    batches = sorted(mrpc_batches(12), key=lambda batch: -batch["input_ids"].shape[1])[:4]
    backbone = torch.bfloat16 if dtype == "bfloat16" and name == "hifi" else torch.float32
    attention = "eager" if dtype == "bfloat16" else "sdpa"  # as in hifi.finetune
    model = minilm(attn_implementation=attention, dtype=backbone, **NO_DROPOUT)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    loaded = resident_megabytes()
    method = prepare(name, model)
    optimizer = torch.optim.AdamW(method.parameters, lr=LEARNING_RATE)
    train(method, optimizer, batches * 2, dtype=dtype)
    return resident_megabytes(field="VmHWM") - loaded


def _median_peak(name: str, dtype: str) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return statistics.median(pool.map(peak, [name] * REPETITIONS, [dtype] * REPETITIONS))


def main() -> list[Row]:
    """Measure HiFi against full fine-tuning, in both precisions."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        megabytes = {name: _median_peak(name, dtype) for name in ("full", "lora-qv", "hifi")}
        label = f"peak memory above the loaded model, MRPC, batch 32, {dtype}: "
        rows += [Row(f"{label}{name}", value, unit="MB") for name, value in megabytes.items()]
        rows.append(Row(f"{label}HiFi / full", megabytes["hifi"] / megabytes["full"], "≤ 0.4"))
    return rows


if __name__ == "__main__":
    print_rows(main())
