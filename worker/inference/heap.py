"""Keeping the C library's heap small, which does not give back all that is free in it."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

_PAUSE_SECONDS = 2.0
_KERNELS = "16"  # a batch has fewer shapes, which the layers have in common


def keep_few_kernels() -> None:
    """Let oneDNN keep the last few of its kernels; to be called before it makes the first.

    It makes one for every shape that a batch has, and keeps 1,024 of them: small pieces among the
    large ones of the batches, which can then be neither joined nor given back. In five minutes of
    batches of all shapes the heap grows by 190 MB, with few kernels by 30. Making one takes less
    than 0.1 ms, a batch hundreds of times that. Where ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` is set,
    it stays as it is.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)


class Heap:
    """Trims the heap now and then.

    Head deltas that are read and packed in several threads leave free pieces between what stays: of
    2.7 MB for each of 256 deltas of MiniLM 3.5 MB are taken from the system, with trimming 2.6. It
    takes 0.3 to 6 ms. Where the C library cannot do it, nothing is done.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._last = 0.0

    def trim(self) -> None:
        """Trim it, unless that was done two seconds ago or less."""
        now = time.monotonic()
        if self._trim is None or now - self._last < _PAUSE_SECONDS:
            return
        self._last = now
        with suppress(OSError):
            self._trim(0)
