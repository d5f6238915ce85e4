"""Peak memory of training above the loaded model, each method in a fresh process."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.data import minilm, mrpc_batches
from benchmarks.paper.methods import prepare
from benchmarks.rows import Row, print_rows
from benchmarks.speed.training import LEARNING_RATE, NO_DROPOUT, train

REPETITIONS = 3


def _resident(field: str) -> float:
    """Read ``VmRSS`` or ``VmHWM`` (its peak) of this process, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak(name: str, dtype: str) -> float:
    """Train a few steps, the longest batch among them; MB above the loaded model."""
    batches = sorted(mrpc_batches(12), key=lambda batch: -batch["input_ids"].shape[1])[:4]
    backbone = torch.bfloat16 if dtype == "bfloat16" and name == "hifi" else torch.float32
    attention = "eager" if dtype == "bfloat16" else "sdpa"  # what hifi.finetune takes
    model = minilm(attn_implementation=attention, dtype=backbone, **NO_DROPOUT)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # start the peak anew
    loaded = _resident("VmRSS")
    method = prepare(name, model)
    optimizer = torch.optim.AdamW(method.parameters, lr=LEARNING_RATE)
    train(method, optimizer, batches * 2, dtype=dtype)
    return _resident("VmHWM") - loaded


def _peak_of_process(name: str, dtype: str) -> float:
    command = [sys.executable, "-m", "benchmarks.speed.memory", name, dtype]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return float(json.loads(output.splitlines()[-1]))


def main() -> list[Row]:
    """Measure HiFi against full fine-tuning, in both precisions."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        megabytes = {
            name: statistics.median(_peak_of_process(name, dtype) for _ in range(REPETITIONS))
            for name in ("full", "lora-qv", "hifi")
        }
        label = f"peak memory above the loaded model, MRPC, batch 32, {dtype}: "
        rows += [Row(f"{label}{name}", value, unit="MB") for name, value in megabytes.items()]
        rows.append(Row(f"{label}HiFi / full", megabytes["hifi"] / megabytes["full"], "≤ 0.4"))
    return rows


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(peak(sys.argv[1], sys.argv[2])))
    else:
        print_rows(main())
