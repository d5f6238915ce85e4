"""worker.inference.memory.heap: trimmed regularly, not fragmented by kernels for every shape."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from worker.inference.memory import heap as heap_module
from worker.inference.memory.heap import Heap

# Batches of all shapes up to 1,024 tokens, through the activation that makes a kernel for each.
SHAPES = """
import sys
from pathlib import Path
from worker.inference.memory.heap import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
import torch

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

gelu = torch.nn.functional.gelu
gelu(torch.randn(8, 8, 1536))
before = pages()
for rows in range(1, 65):
    for length in range(1, min(1024 // rows, 64) + 1, 2):
        gelu(torch.zeros(rows, length, 1536))
print(pages() - before)
"""


def test_is_trimmed_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch):
    heap, calls, now = Heap(), [], [100.0]
    monkeypatch.setattr(heap_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(heap, "_trim", calls.append)
    for at, expected in ((100.0, 1), (101.9, 1), (102.0, 2), (105.0, 3)):
        now[0] = at
        heap.trim()
        assert calls == [0] * expected


def test_a_library_that_cannot_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    Heap().trim()


def growth(kernels: str) -> int:
    command = [sys.executable, "-c", SHAPES, kernels]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")
    }
    child = subprocess.run(command, capture_output=True, check=True, env=environment)
    return int(child.stdout)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
@pytest.mark.process
def test_batches_of_many_shapes_leave_the_heap_small():
    assert growth("few") < growth("many") / 2
