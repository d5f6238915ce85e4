"""What the numbers were measured on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
_LIBRARIES = ("torch", "transformers", "peft", "datasets")


def describe() -> str:
    """Name the processor, the threads and the libraries in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    known = torch.cpu.get_capabilities()
    features = ", ".join(name for name in _FEATURES if known.get(name))
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    threads = torch.get_num_threads()
    python = platform.python_version()
    return f"{cpu} ({features}), {threads} threads; Python {python}, {libraries}"
