"""Reproducibility: a run's own random states, and deterministic kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor


@contextmanager
def reproducible_kernels(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels in a block, then restore the previous settings.

    If ``CUBLAS_WORKSPACE_CONFIG`` was not set, it stays in the environment: cuBLAS reads it only
    once.

    Args:
        device: where the model runs. CPU kernels are reproducible for a fixed number of threads; on
            CUDA torch warns if it has no deterministic kernel.
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    # cuBLAS is deterministic with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]


def own_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore the caller's random states, of the CPU and the device, at the end of a block."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_random(seed: int, *, device: torch.device) -> None:
    """Seed the random generators of the CPU and of the device, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators, uint8, by the names ``cpu`` and ``cuda``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Tensor], *, device: torch.device) -> None:
    """Restore the states that :func:`random_states` returned."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
