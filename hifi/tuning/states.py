"""Keep hidden states of samples: in memory, then in a file, then not at all."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hifi.arguments import check_integer
from hifi.errors import InvalidArgumentError
from hifi.memory import usable_memory

# Chosen, not measured: next to the model, its activations and backbones of earlier runs. Processes
# that share a machine, such as workers, do not know of each other, so the share has a bound.
_MEMORY_SHARE = 8  # one part in so many of what this process may use
_MOST_MEMORY = 1 << 30
_LEFT_FREE = 1 << 30  # on disk, for data and checkpoints of all processes that share it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StatePlaces:
    """Where hidden states are kept, and how many bytes of them; no result depends on it.

    Attributes:
        memory_bytes: the most in memory; None is an eighth of what this process may use, at most
            1 GiB.
        disk_bytes: the most on disk, beyond those in memory; None sets no limit. In any case the
            file grows only while it is no larger than what is still free, and leaves 1 GiB free.
        folder: where; None is the system's folder for temporary files. The file has no name there
            and disappears with the process, however it ends.

    Raises:
        InvalidArgumentError: a number of bytes is negative, or the folder is not a path.
    """

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "disk_bytes"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_integer(name, value, least=0))
        if self.folder is not None and not isinstance(self.folder, str | Path):
            raise InvalidArgumentError("folder", value=self.folder, limit="a folder's path")


@dataclass(frozen=True)
class _Place:
    """Where one sample's states lie in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class StateStore:
    """Hidden states by key, each kept where there was room when it came.

    Every epoch reads every sample once, so none is worth more room than another: none is moved or
    evicted. The states of a key that is not found have to be computed again.

    Args:
        places: what may be used.
    """

    def __init__(self, places: StatePlaces) -> None:
        most = places.memory_bytes
        if most is None:
            most = min(usable_memory() // _MEMORY_SHARE, _MOST_MEMORY)
        self._memory_left = most
        self._places = places
        self._in_memory: dict[Hashable, Tensor] = {}
        self._on_disk: dict[Hashable, _Place] = {}
        self._file: _File | None = None
        self._is_full = False

    def put(self, key: Hashable, states: Tensor) -> None:
        """Keep a sample's states, if there is room and it has none yet.

        Args:
            key: of the sample.
            states: on the CPU, contiguous; kept as they are, not copied.
        """
        if key in self._in_memory or key in self._on_disk:
            return
        if states.nbytes <= self._memory_left:
            self._memory_left -= states.nbytes
            self._in_memory[key] = states
        elif not self._is_full:
            self._write(key, states)

    def get(self, key: Hashable) -> Tensor | None:
        """Return a sample's states, on the CPU; None if they are not kept."""
        if key in self._in_memory:
            return self._in_memory[key]
        place = self._on_disk.get(key)
        return None if place is None else self._read(key, place)

    def close(self) -> None:
        """Forget all states, and close the file, which removes it."""
        self._in_memory.clear()
        self._on_disk.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, key: Hashable, states: Tensor) -> None:
        try:
            if self._file is None:
                self._file = _File(self._places.folder, most=self._places.disk_bytes)
            start = self._file.append(_bytes_of(states))
        except OSError as error:
            self._is_full = True
            _log.warning(
                "no room to keep the hidden states of more samples (%s): they are computed again "
                "in every epoch, with the same result",
                error.strerror,
            )
        else:
            self._on_disk[key] = _Place(start, tuple(states.shape), states.dtype)

    def _read(self, key: Hashable, place: _Place) -> Tensor | None:
        states = torch.empty(place.shape, dtype=place.dtype)
        try:
            cast("_File", self._file).read_into(_bytes_of(states), start=place.start)
        except OSError as error:
            del self._on_disk[key]
            _log.warning(
                "the hidden states of a sample cannot be read back (%s): they are computed again",
                error.strerror,
            )
            return None
        return states


class _File:
    """A file for this user alone, without a name, which disappears when it is closed.

    Args:
        folder: where; None is the system's folder for temporary files.
        most: bytes; None sets no limit.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, folder: str | Path | None, *, most: int | None) -> None:
        self._folder = folder or tempfile.gettempdir()
        self._most = most
        self._end = 0
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - see close
            buffering=0, dir=self._folder
        )

    def append(self, content: memoryview) -> int:
        """Write at the end of the file; return the place.

        Raises:
            OSError: there is no room, or others need it.
        """
        start, end = self._end, self._end + len(content)
        # Checkpoints and files of other processes grow meanwhile.
        free = shutil.disk_usage(self._folder).free - len(content)
        if free < max(end, _LEFT_FREE) or (self._most is not None and end > self._most):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.seek(start)
        left = content
        while left:
            left = left[self._file.write(left) :]
        self._end = end
        return start

    def read_into(self, content: memoryview, *, start: int) -> None:
        """Read from a place until ``content`` is full.

        Raises:
            OSError: the disk fails.
        """
        self._file.seek(start)
        left = content
        while left:
            count = self._file.readinto(left)
            if not count:
                raise OSError(errno.EIO, "the file ends early")
            left = left[count:]

    def close(self) -> None:
        self._file.close()


def _bytes_of(states: Tensor) -> memoryview:
    """Return a contiguous tensor's memory."""
    return states.view(-1).view(torch.uint8).numpy().data
