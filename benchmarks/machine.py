"""Describe the machine, and measure the memory of a process."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
_LIBRARIES = ("torch", "transformers", "peft", "datasets", "scikit-learn")


def describe() -> str:
    """Return the processor, the threads and the library versions in one line."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{processor()}, {torch.get_num_threads()} threads; {libraries}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide about results and speed."""
    return {"Python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def processor() -> str:
    """Return the processor and those of its features that decide about speed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    known = torch.cpu.get_capabilities()
    features = ", ".join(name for name in _FEATURES if known.get(name))
    return f"{cpu} ({features})"


def resident_megabytes(pid: int | str = "self", *, field: str = "VmRSS") -> float:
    """Return a process's resident memory in MB; the field ``VmHWM`` is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":", maxsplit=1) for line in lines)
    return int(sizes[field].split()[0]) * 1024 / 1e6
