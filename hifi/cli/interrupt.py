"""Ctrl-C during a long run: the first one stops it cleanly, the second one immediately."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hifi.training.events import Control

_STDERR = 2
_NOTE = b"\nhifi: stopping at the next step; Ctrl-C again stops at once\n"


@contextmanager
def stop_on_interrupt(stop: Control) -> Iterator[Callable[[], Control]]:
    """Turn the first Ctrl-C of a block into an answer to the next event.

    Does nothing if Ctrl-C is ignored (``nohup``), or outside the main thread.

    Args:
        stop: the answer: PAUSE, to keep a checkpoint, or CANCEL.

    Yields:
        A function that returns the current answer: CONTINUE before the first Ctrl-C.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
    """
    answer = Control.CONTINUE

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal answer
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer = stop
        os.write(_STDERR, _NOTE)  # a handler may interrupt a print, so it must not print

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield lambda: answer
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: answer
    finally:
        signal.signal(signal.SIGINT, previous)
