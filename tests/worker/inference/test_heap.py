"""worker.inference.heap: trimmed now and then, and only where that can be done."""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING

from worker.inference.heap import Heap

if TYPE_CHECKING:
    import pytest


def test_is_trimmed_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch):
    heap, calls, now = Heap(), [], [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap, "_trim", calls.append)
    for at, expected in ((100.0, 1), (101.9, 1), (102.0, 2), (105.0, 3)):
        now[0] = at
        heap.trim()
        assert calls == [0] * expected


def test_a_library_that_cannot_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    Heap().trim()
