"""Facts and services of the machine on which a process runs."""

from __future__ import annotations

import ctypes
import socket
import sys

_PR_SET_PDEATHSIG = 1
_LONGEST_NAME = 40


def machine_name() -> str:
    """Return the letters, digits and hyphens of the host name, for use in identifiers."""
    name = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")
    return name[:_LONGEST_NAME]


def end_with_parent(signal_number: int) -> None:
    """Make the kernel send this process a signal when its parent ends; works only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
