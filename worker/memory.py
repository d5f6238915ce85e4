"""The host memory of the processes that compute: its limit, and errors that mean it is used up."""

from __future__ import annotations

import torch

from hifi.memory import machine_memory
from store.resources.memory import limit_memory

# RuntimeErrors of torch's CPU allocator on Linux and elsewhere, and of C++ code below it.
_SIGNS = ("can't allocate memory", "not enough memory", "std::bad_alloc")


def limit_host_memory(device: torch.device, *, most: int | None, share: float) -> int | None:
    """Limit the host memory of this process; without a limit, the kernel may kill it or others.

    Args:
        device: on which it computes. Its own memory does not count.
        most: in bytes; None is a share of the machine's memory on a CPU, and no limit on a GPU,
            where a job's memory is the device's.
        share: of the machine's memory.

    Returns:
        The limit in bytes; None if there is none.
    """
    if most is None and device.type == "cpu":
        most = int(machine_memory() * share)
    if most is not None:
        limit_memory(most)
    return most


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the host or on the device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
