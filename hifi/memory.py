"""How much memory this process may use, on its machine or in its container."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """Return the limit of this process's memory in bytes; None if there is none."""
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if most == resource.RLIM_INFINITY else most


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of this container if it may use fewer."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits(_CGROUPS, _MEMBERSHIP)])


def usable_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its own limit."""
    most = memory_limit()
    return machine_memory() if most is None else min(most, machine_memory())


def _cgroup_limits(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yield the memory limits of a process's control groups, of both versions, and their parents.

    Args:
        cgroups: where the control groups are mounted.
        membership: the process's file ``/proc/…/cgroup``; without it there are no limits.
    """
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                text = (place / name).read_text().strip()
                if text.isdigit():  # otherwise "max"
                    yield int(text)
