"""Load head deltas from the artifact store, via the local disk, into host memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from hifi.deltas.delta import HeadDelta
from store.resources.turns import FairPool, SingleFlight, Turns
from worker.inference.memory.heap import Heap

if TYPE_CHECKING:
    from store.orders import DeltaOrder
    from worker.inference.memory.backbones import LoadedDelta, ServedBackbone
    from worker.inference.memory.deltas import DeltaCache
    from worker.inference.memory.tiers import HostTier

_Key: TypeAlias = "tuple[ServedBackbone, str]"
# Threads that mostly wait for the artifact store. A tenant has at most two of them, and the last
# four are for tenants that have none: blobs that hang do not block other tenants.
_FETCHERS, _FETCHERS_EACH, _FETCHERS_SPARE = 8, 2, 4
_PACKERS = 2  # threads that compute; a tenant has at most one of them
# Head deltas in memory that no tier counts yet. While one is held, nothing waits for calls that can
# hang, unless the disk cache evicts a file right after it was fetched.
_LOADED, _LOADED_EACH, _LOADED_SPARE = 64, 32, 16


class DeltaLoader:
    """Brings head deltas from the disk cache into host memory. Used on one event loop."""

    def __init__(self, *, deltas: DeltaCache, host: HostTier) -> None:
        self._deltas = deltas
        self._host = host
        self._heap = Heap()
        self._fetchers = FairPool(
            _FETCHERS, most_each=_FETCHERS_EACH, spare=_FETCHERS_SPARE, name="fetcher"
        )
        self._packers = FairPool(_PACKERS, most_each=1, spare=0, name="packer")
        self._loaded = Turns(_LOADED, most_each=_LOADED_EACH, spare=_LOADED_SPARE)
        self._fetches: SingleFlight[tuple[str, str], None] = SingleFlight()
        self._packings: SingleFlight[_Key, LoadedDelta] = SingleFlight()

    def close(self) -> None:
        """Start no further work."""
        for pool in (self._fetchers, self._packers):
            pool.close()

    @asynccontextmanager
    async def loaded(
        self, order: DeltaOrder, backbone: ServedBackbone
    ) -> AsyncIterator[LoadedDelta]:
        """Yield a head delta in host memory; the caller holds its backbone.

        Raises:
            BlobLostError, ArtifactStorageError: it cannot be read.
            HifiError: it is not a head delta of this backbone.
            OSError: the disk has no room for it.
        """
        found = self._host.find(backbone, order.key)
        if found is not None:
            yield found
            return
        fetch = partial(self._fetch, order)
        on_disk = partial(self._fetchers.run, fetch, tenant=order.tenant)
        await self._fetches.join((order.tenant, order.sha256), on_disk)
        async with self._loaded.hold(order.tenant):
            pack = partial(self._pack, order, backbone)
            in_memory = partial(self._packers.run, pack, tenant=order.tenant)
            yield await self._packings.join((backbone, order.key), in_memory)

    def _fetch(self, order: DeltaOrder) -> None:
        with self._deltas.hold(order.tenant, order.sha256):
            pass  # now it is on disk

    def _pack(self, order: DeltaOrder, backbone: ServedBackbone) -> LoadedDelta:
        with self._deltas.hold(order.tenant, order.sha256) as file:
            loaded = backbone.load(HeadDelta.load(file))
        self._host.keep(backbone, order.key, loaded)
        self._heap.trim()
        return loaded
