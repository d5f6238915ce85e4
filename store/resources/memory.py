"""Limit the memory of a process: one that needs too much fails by itself, and harms no other."""

from __future__ import annotations

import ctypes
import os
import resource

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of mallopt(3)
_LARGE_BYTES = 256 << 10
_ARENAS = 2


def limit_memory(most: int) -> None:
    """Limit this process's memory; an allocation beyond the limit fails, and may be handled.

    The kernel counts the heap and all private writable memory (``RLIMIT_DATA``). It does not count
    files that are mapped for reading, nor the address space that the driver of a GPU reserves; with
    ``RLIMIT_AS`` both would count.

    Args:
        most: in bytes; a lower limit that this process has already stays.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def keep_reservations_small() -> None:
    """Make pyarrow use the C library's allocator; call this before pyarrow is imported.

    Its own allocator reserves 1 GiB of writable memory at once, which counts as if it were used.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def return_large_blocks() -> None:
    """Let the C library return large blocks to the system when they are freed.

    It keeps freed blocks of up to 32 MiB for later, in each thread's arena. A gateway that nine
    clients sent bodies of 15.7 MiB kept 141 MB afterwards (peak 173) instead of 269 (peak 285).
    Call this before threads start. With another C library it does nothing.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        change(_M_ARENA_MAX, _ARENAS)
