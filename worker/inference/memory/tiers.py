"""Two tiers of head deltas, device and host memory; each evicts the least recently used first.

The third tier, the local disk in front of the artifact store, is
:mod:`worker.inference.memory.deltas`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from worker.inference.memory.recency import LeastRecentlyUsed

if TYPE_CHECKING:
    from hifi.serving.bank import HeadBank, PackedDelta
    from hifi.serving.prediction import TaskRecord
    from worker.inference.memory.backbones import LoadedDelta, ServedBackbone

DeltaKey: TypeAlias = str  # tenant and content hash, so one key per delta for all jobs
_Entry: TypeAlias = "tuple[ServedBackbone, DeltaKey]"


class HostTier:
    """Head deltas in host memory, pinned if the device is a GPU.

    Args:
        max_bytes: of all deltas together. 0 keeps none, as on a CPU, where host and device memory
            are the same.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: LeastRecentlyUsed[_Entry, LoadedDelta] = LeastRecentlyUsed(max_bytes)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes of all kept deltas."""
        return self._kept.held

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, backbone: ServedBackbone, key: DeltaKey) -> LoadedDelta | None:
        """Return a head delta if it is here, and mark it as most recently used."""
        with self._lock:
            return self._kept.use((backbone, key))

    def keep(self, backbone: ServedBackbone, key: DeltaKey, loaded: LoadedDelta) -> None:
        """Keep a head delta if there is room."""
        with self._lock:
            if backbone.is_dropped:
                return
            self._kept.put((backbone, key), loaded, size=loaded.packed.nbytes)
            self._kept.shrink(is_used=lambda _: False)

    def drop(self, backbone: ServedBackbone) -> None:
        """Evict all of a backbone's head deltas."""
        with self._lock:
            backbone.is_dropped = True
            for entry in [entry for entry in self._kept if entry[0] is backbone]:
                self._kept.pop(entry)


@dataclass(frozen=True)
class Placement:
    """The result of placing a batch's head deltas.

    Attributes:
        ready: on the device.
        later: in memory, but there is no room for them next to those that are ready.
        missing: not in memory; they must be loaded first.
    """

    ready: frozenset[DeltaKey]
    later: frozenset[DeltaKey]
    missing: frozenset[DeltaKey]


class DeviceTier:
    """Head deltas on the device, in slots of their backbone's bank.

    Only one thread places them. Looking one up never waits for a copy to the device.

    Args:
        max_bytes: of all slots, including free ones. A single larger delta is placed nevertheless.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._banks: set[HeadBank] = set()
        self._placed: dict[_Entry, TaskRecord] = {}  # least recently used first

    @property
    def nbytes(self) -> int:
        """The bytes of all slots."""
        return sum(bank.nbytes for bank in self._known_banks())

    def __len__(self) -> int:
        return len(self._placed)

    def find(self, backbone: ServedBackbone, key: DeltaKey) -> TaskRecord | None:
        """Return the record of a head delta if it is here, and mark it as most recently used."""
        with self._lock:
            return self._use((backbone, key))

    def place(
        self,
        backbone: ServedBackbone,
        wanted: Mapping[DeltaKey, TaskRecord],
        *,
        packed: Mapping[DeltaKey, PackedDelta],
    ) -> Placement:
        """Place head deltas on the device, as many as there is room for.

        Args:
            backbone: of the deltas.
            wanted: all deltas that a batch uses.
            packed: those of them that are in host memory.

        Returns:
            At least one of the deltas is ready or missing. If the backbone was evicted, all are
            missing.

        Raises:
            torch.OutOfMemoryError: the device has no room for a delta, even alone.
        """
        with self._lock:
            if backbone.is_dropped:  # its last user cancelled while a batch was formed
                return Placement(frozenset(), frozenset(), frozenset(wanted))
            self._banks.add(backbone.bank)
            ready = {key for key in wanted if self._use((backbone, key)) is not None}
        missing = wanted.keys() - ready - packed.keys()
        later = set()
        for key in sorted(wanted.keys() - ready - missing):
            if self._put(backbone, key, packed[key], keep=ready):
                self._note(backbone, key, wanted[key])
                ready.add(key)
            else:
                later.add(key)
        return Placement(frozenset(ready), frozenset(later), frozenset(missing))

    def drop(self, backbone: ServedBackbone) -> None:
        """Evict all head deltas of a backbone and release its bank."""
        with self._lock:
            backbone.is_dropped = True
            self._banks.discard(backbone.bank)
            entries = [entry for entry in self._placed if entry[0] is backbone]
            for entry in entries:
                del self._placed[entry]
        for _, key in entries:
            backbone.bank.remove(key)
        backbone.bank.release_free_slots()

    def _note(self, backbone: ServedBackbone, key: DeltaKey, record: TaskRecord) -> None:
        with self._lock:
            if not backbone.is_dropped:
                self._placed[backbone, key] = record

    def _use(self, entry: _Entry) -> TaskRecord | None:
        record = self._placed.pop(entry, None)
        if record is not None:
            self._placed[entry] = record
        return record

    def _known_banks(self) -> list[HeadBank]:
        with self._lock:
            return list(self._banks)

    def _put(
        self,
        backbone: ServedBackbone,
        key: DeltaKey,
        packed: PackedDelta,
        *,
        keep: Collection[DeltaKey],
    ) -> bool:
        """Put a head delta into a bank if there is room next to the backbone's kept deltas.

        Other processes may use the device's memory too. If memory runs out before the budget does,
        head deltas are evicted as if the budget were reached.
        """
        while self._make_room(backbone, packed, keep=keep):
            try:
                backbone.bank.put(key, packed)
            except torch.OutOfMemoryError:
                if not (self._release_free_slots() or self._evict(backbone, keep=keep)):
                    if keep:
                        return False
                    raise
            else:
                return True
        return False

    def _make_room(
        self, backbone: ServedBackbone, packed: PackedDelta, *, keep: Collection[DeltaKey]
    ) -> bool:
        """Find a free slot, or room for a new one, without evicting the backbone's kept deltas.

        A freed slot is reused if the next delta has the same layout; then nothing is allocated.
        """
        while (
            not backbone.bank.has_free_slot(packed.layout)
            and self.nbytes + packed.nbytes > self._max_bytes
        ):
            if not (self._release_free_slots() or self._evict(backbone, keep=keep)):
                return not keep  # a single delta is placed nevertheless
        return True

    def _evict(self, backbone: ServedBackbone, *, keep: Collection[DeltaKey]) -> bool:
        """Evict the least recently used head delta not in ``keep``; return False without one."""
        with self._lock:
            victims = (e for e in self._placed if not (e[0] is backbone and e[1] in keep))
            victim = next(victims, None)
            if victim is None:
                return False
            del self._placed[victim]
        victim[0].bank.remove(victim[1])
        return True

    def _release_free_slots(self) -> bool:
        before = self.nbytes
        for bank in self._known_banks():
            bank.release_free_slots()
        return self.nbytes < before
