"""Keep the C library's heap small: it does not return all free memory to the system."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

_PAUSE_SECONDS = 2.0
_KERNELS = "16"  # a batch has fewer shapes, and all layers share them


def keep_few_kernels() -> None:
    """Make oneDNN cache only a few kernels; call this before oneDNN creates the first.

    oneDNN creates a kernel for every shape of a batch and caches 1,024 of them. These small
    allocations lie between the large ones of the batches, whose memory can then be neither merged
    nor returned. In five minutes of batches of all shapes the heap grows by 190 MB; with few
    kernels by 30 MB. Creating a kernel takes less than 0.1 ms, and a batch hundreds of times that.
    If ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` is set, it is not changed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)


class Heap:
    """Trims the heap from time to time.

    Reading and packing head deltas in several threads leaves free gaps between allocations: with
    256 deltas of MiniLM of 2.7 MB, the process takes 3.5 MB per delta from the system, and with
    trimming 2.6 MB. Trimming takes 0.3 to 6 ms. If the C library does not support it, nothing is
    done.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._last = 0.0

    def trim(self) -> None:
        """Trim the heap, unless that was done within the last two seconds."""
        now = time.monotonic()
        if self._trim is None or now - self._last < _PAUSE_SECONDS:
            return
        self._last = now
        with suppress(OSError):
            self._trim(0)
