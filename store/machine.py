"""What a process has to know of the machine on which it runs."""

from __future__ import annotations

import ctypes
import socket
import sys

_PR_SET_PDEATHSIG = 1
_LONGEST_NAME = 40


def machine_name() -> str:
    """Name this machine in an identifier: the letters, digits and hyphens of its host name."""
    name = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")
    return name[:_LONGEST_NAME]


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; Linux alone can do that.

    Args:
        signal_number: the signal, such as ``SIGKILL``.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
