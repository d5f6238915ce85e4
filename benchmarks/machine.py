"""Describe the machine, and measure the memory of a process."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
_LIBRARIES = ("torch", "transformers", "peft", "datasets")


def describe() -> str:
    """Return the processor, the threads and the library versions in one line."""
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


def resident_megabytes(pid: int | str = "self", *, field: str = "VmRSS") -> float:
    """Return a process's resident memory in MB; the field ``VmHWM`` is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":", maxsplit=1) for line in lines)
    return int(sizes[field].split()[0]) * 1024 / 1e6
