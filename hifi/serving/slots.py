"""Tensors packed into one flat tensor, and reusable slots of device memory for them."""

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

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True)
class Layout:
    """The layout of tensors in one flat tensor: in order, each at a multiple of 64 bytes.

    Layouts are equal, and have equal hashes, if names, shapes and order of the parts are equal.

    Attributes:
        parts: name and shape of each tensor.
        dtype: of all tensors.
    """

    parts: tuple[tuple[str, Shape], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], *, dtype: torch.dtype) -> Layout:
        """Create a layout for parts with these names and shapes, in this order."""
        return cls(tuple(shapes.items()), dtype)

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """The start of each part, and the end of the last one's padding, in elements."""
        step = _ALIGNMENT // self.dtype.itemsize
        bounds = [0]
        for _, shape in self.parts:
            bounds.append(bounds[-1] + math.ceil(math.prod(shape) / step) * step)
        return tuple(bounds)

    @property
    def size(self) -> int:
        """The number of elements of the flat tensor."""
        return self._bounds[-1]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the flat tensor."""
        return self.size * self.dtype.itemsize

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parts of a flat tensor ``[size]`` by name, as views."""
        starts = self._bounds[:-1]
        return {
            name: flat[start : start + math.prod(shape)].view(shape)
            for start, (name, shape) in zip(starts, self.parts, strict=True)
        }


@dataclass(frozen=True, eq=False)
class Slot:
    """Memory for one flat tensor.

    Attributes:
        layout: of the tensors that fit.
        flat: the memory, ``[layout.size]``.
        parts: views of the memory by name, created once.
    """

    layout: Layout
    flat: Tensor
    parts: Mapping[str, Tensor]


class Slots:
    """Reusable memory on a device for flat tensors of equal layouts.

    A slot is in use while it has a holder. Then it is free, and keeps its memory. Methods may be
    called from any thread, and no call waits for another's copy. If everything runs on one stream,
    a GPU finishes reading a released slot before the slot is filled again.

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
        """The bytes of all slots, including free ones."""
        with self._lock:
            return self._nbytes

    def has_free(self, layout: Layout) -> bool:
        """Return whether there is a free slot of this layout."""
        with self._lock:
            return layout in self._free

    def fill(self, flat: Tensor, *, layout: Layout) -> Slot:
        """Copy a flat tensor into a free slot, or into a new slot if none is free.

        Args:
            flat: ``[layout.size]``, in host memory; from pinned memory the copy to a GPU is
                asynchronous.
            layout: its layout.

        Returns:
            The slot, with one holder.

        Raises:
            torch.OutOfMemoryError: the GPU has no memory for another slot; nothing has changed.
        """
        slot = self._take(layout) or self._make(layout)
        with torch.inference_mode():
            slot.flat.copy_(flat, non_blocking=True)
        return slot

    def hold(self, slot: Slot) -> None:
        """Add a holder to a slot that has one already."""
        with self._lock:
            self._holders[slot] += 1

    def let_go(self, slot: Slot) -> None:
        """Remove one holder of a slot; without holders the slot is free."""
        with self._lock:
            self._holders[slot] -= 1
            if not self._holders[slot]:
                del self._holders[slot]
                self._free.setdefault(slot.layout, []).append(slot)

    def release_free(self) -> None:
        """Release the memory of free slots."""
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
        # Always in inference mode, whether or not the caller is.
        with torch.inference_mode():
            flat = torch.empty(layout.size, dtype=layout.dtype, device=self._device)
            slot = Slot(layout, flat, layout.split(flat))
        with self._lock:
            self._holders[slot] = 1
            self._nbytes += layout.nbytes
        return slot
