"""Tensors that lie in one, and memory on a device in which such tensors take turns."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hifi.deltas.row_names import Shape

_ALIGNMENT = 64  # bytes: a cache line, and the widest that a processor reads at once


@dataclass(frozen=True)
class Layout:
    """How tensors lie in one flat tensor: one after another, each from a multiple of 64 bytes on.

    Layouts are equal, and hash alike, where names, shapes and order of the parts are equal.

    Attributes:
        parts: name and shape of each.
        dtype: of all of them.
    """

    parts: tuple[tuple[str, Shape], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], *, dtype: torch.dtype) -> Layout:
        """Lay out parts of these names and shapes, in this order."""
        return cls(tuple(shapes.items()), dtype)

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """Say where each part begins, and where the last one's padding ends, in elements."""
        step = _ALIGNMENT // self.dtype.itemsize
        bounds = [0]
        for _, shape in self.parts:
            bounds.append(bounds[-1] + math.ceil(math.prod(shape) / step) * step)
        return tuple(bounds)

    @property
    def size(self) -> int:
        """Count the elements of the flat tensor."""
        return self._bounds[-1]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the flat tensor."""
        return self.size * self.dtype.itemsize

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Give the parts of a flat tensor ``[size]`` by name, as views."""
        starts = self._bounds[:-1]
        return {
            name: flat[start : start + math.prod(shape)].view(shape)
            for start, (name, shape) in zip(starts, self.parts, strict=True)
        }


@dataclass(frozen=True, eq=False)
class Slot:
    """Memory for one flat tensor.

    Attributes:
        layout: of what fits in.
        flat: the memory, ``[layout.size]``.
        parts: views of it by name, made once.
    """

    layout: Layout
    flat: Tensor
    parts: Mapping[str, Tensor]


class Slots:
    """The memory of a device for flat tensors, given from one to the next of the same layout.

    A slot is in use while it has a holder; then it is free, and keeps its memory. Methods may be
    called from any thread, and none waits for another's copy. What a GPU still has to read of a
    slot that is let go is read before it is filled again, if all is done on one stream.

    Args:
        device: where the slots are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._holders: dict[Slot, int] = {}
        self._free: dict[Layout, list[Slot]] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Count the bytes of all slots, free ones included."""
        with self._lock:
            return self._nbytes

    def has_free(self, layout: Layout) -> bool:
        """Say whether something of this layout would be taken in without an allocation."""
        with self._lock:
            return layout in self._free

    def fill(self, flat: Tensor, *, layout: Layout) -> Slot:
        """Copy a flat tensor into a free slot, or into a new one where none is free.

        Args:
            flat: ``[layout.size]``, on the host; out of pinned memory it is copied to a GPU without
                waiting.
            layout: its layout.

        Returns:
            The slot, with one holder.

        Raises:
            torch.OutOfMemoryError: a GPU has no memory for another slot; nothing has changed.
        """
        slot = self._take(layout) or self._make(layout)
        with torch.inference_mode():
            slot.flat.copy_(flat, non_blocking=True)
        return slot

    def hold(self, slot: Slot) -> None:
        """Keep a slot that has a holder for one holder more."""
        with self._lock:
            self._holders[slot] += 1

    def let_go(self, slot: Slot) -> None:
        """Take one holder off; without any, the slot is free."""
        with self._lock:
            self._holders[slot] -= 1
            if not self._holders[slot]:
                del self._holders[slot]
                self._free.setdefault(slot.layout, []).append(slot)

    def release_free(self) -> None:
        """Give back the memory of free slots."""
        with self._lock:
            self._nbytes -= sum(layout.nbytes * len(slots) for layout, slots in self._free.items())
            self._free.clear()

    def _take(self, layout: Layout) -> Slot | None:
        with self._lock:
            slots = self._free.get(layout)
            if slots is None:
                return None
            slot = slots.pop()
            if not slots:
                del self._free[layout]
            self._holders[slot] = 1
            return slot

    def _make(self, layout: Layout) -> Slot:
        # All in inference mode, which whoever asks may or may not be in.
        with torch.inference_mode():
            flat = torch.empty(layout.size, dtype=layout.dtype, device=self._device)
            slot = Slot(layout, flat, layout.split(flat))
        with self._lock:
            self._holders[slot] = 1
            self._nbytes += layout.nbytes
        return slot
