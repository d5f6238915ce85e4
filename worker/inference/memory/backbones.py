"""Backbones in memory, each with its bank of head deltas and its encoders of inputs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import structlog
import torch

from hifi.backbones.devices import serving_dtype
from hifi.backbones.models import ModelSource, download_model, identify_folder, load_config
from hifi.deltas.loading import load_bare_backbone
from hifi.errors import BackboneMismatchError, ModelError
from hifi.serving.bank import HeadBank
from hifi.serving.prediction import TaskRecord
from store.resources.turns import FairPool, SingleFlight
from worker.inference.memory.recency import LeastRecentlyUsed
from worker.models import find_backbones, stamp_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta
    from hifi.serving.bank import PackedDelta
    from hifi.tasks import Encoder
    from store.settings import Settings

BackboneName: TypeAlias = tuple[str, str | None]  # id, or hub id and commit
_Key: TypeAlias = tuple[BackboneName, int]  # and the version of its files
_LOADERS = 4  # threads: downloads wait for the hub most of the time
_ENCODERS = 16  # of one backbone: each has a tokenizer of its own
_log = structlog.get_logger(__name__)


def find_backbone(settings: Settings, name: BackboneName) -> ModelSource:
    """Find a backbone by its id, or by its hub id and commit; never by a path.

    Raises:
        ModelError: it does not exist.
    """
    model, revision = name
    if revision is None:
        folder = find_backbones(settings).get(model)
        if folder is None:
            raise ModelError(f"no folder {model} in {settings.models}")
        return identify_folder(folder)
    if not settings.allow_hub:
        raise ModelError(f"{model} is a hub id, and HIFI_ALLOW_HUB is not set")
    return download_model(model, revision=revision)


@dataclass(frozen=True, eq=False)
class LoadedDelta:
    """A head delta in host memory, ready to copy to its backbone's device.

    Attributes:
        record: its task, as predictions need it.
        packed: its weights.
    """

    record: TaskRecord
    packed: PackedDelta


class ServedBackbone:
    """A bare backbone on its device.

    Args:
        source: its folder and name.
        model: the backbone, in eval mode.
        fingerprint: of the backbone as stored.
        stamp: of its files when they were read.

    Attributes:
        stamp: as above.
        is_dropped: whether it was evicted; the tiers then keep none of its deltas.
    """

    def __init__(
        self, source: ModelSource, model: PreTrainedModel, *, fingerprint: str, stamp: str
    ) -> None:
        self.model = model
        self.stamp = stamp
        self.bank = HeadBank(model)
        self.is_dropped = False
        self._source = source
        self._fingerprint = fingerprint
        self._encoders: LeastRecentlyUsed[object, Encoder] = LeastRecentlyUsed(_ENCODERS)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes of its weights."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def load(self, delta: HeadDelta) -> LoadedDelta:
        """Lay a head delta out for this backbone.

        Raises:
            BackboneMismatchError: the delta is of another backbone.
            TaskNotSupportedError, TaskHeadMismatchError, DeltaFileError: the delta does not allow
                predictions.
        """
        if delta.metadata.fingerprint != self._fingerprint:
            raise BackboneMismatchError(
                f"the head delta was tuned on {delta.metadata.model!r} with the fingerprint "
                f"{delta.metadata.fingerprint}; this backbone's is {self._fingerprint}"
            )
        return LoadedDelta(TaskRecord.of(delta, self.model.config), self.bank.pack(delta))

    def encoder_for(self, record: TaskRecord) -> Encoder:
        """Return the encoder of a task's inputs; load it if it is not in memory.

        Raises:
            ModelError, InvalidArgumentError: as ``TaskRecord.load_encoder``.
        """
        with self._lock:
            encoder = self._encoders.use(record.encoding)
        if encoder is None:  # loading it twice at once does no harm
            encoder = record.load_encoder(self._source, self.model)
            with self._lock:
                self._encoders.put(record.encoding, encoder, size=1)
                self._encoders.shrink(is_used=lambda _: False)
        return encoder


class Backbones:
    """Loads backbones, and keeps the most recently used ones. Used on one event loop.

    Their total size never exceeds the budget, except for a single backbone that is larger. Before
    a backbone is loaded, unused ones are evicted. If that is not enough, loading waits until
    current users finish; new users wait until it has its room.

    Args:
        settings: have the folder of backbones and the budget in bytes.
        device: on which they compute.
        on_drop: called with each evicted backbone, which is no longer in use.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: torch.device,
        on_drop: Callable[[ServedBackbone], None],
    ) -> None:
        self._settings = settings
        self._device = device
        self._on_drop = on_drop
        self._versions: Counter[BackboneName] = Counter()  # changes of the files that were seen
        self._kept: LeastRecentlyUsed[_Key, ServedBackbone] = LeastRecentlyUsed(
            settings.infer_backbone_bytes
        )
        self._users: Counter[_Key] = Counter()
        self._reserved = 0  # bytes of backbones that are being loaded
        self._door = asyncio.Lock()  # locked while a backbone waits for room
        self._freed = asyncio.Event()
        self._loads: SingleFlight[_Key, None] = SingleFlight()
        self._threads = FairPool(_LOADERS, most_each=1, spare=0, name="backbone")

    def __len__(self) -> int:
        return len(self._kept)

    def close(self) -> None:
        """Start no further work."""
        self._threads.close()

    @asynccontextmanager
    async def hold(self, name: BackboneName, *, tenant: str) -> AsyncIterator[ServedBackbone]:
        """Use a backbone during a block; load it first if it is not in memory.

        Tenants take turns at loading.

        Raises:
            ModelError, UnsupportedArchitectureError, OSError: it cannot be loaded.
            torch.OutOfMemoryError: the device has no memory for it.
        """
        if self._door.locked():
            async with self._door:
                pass
        key = name, self._versions[name]
        self._users[key] += 1  # counted before it is loaded, so that it is not evicted at once
        try:
            while (backbone := self._kept.use(key)) is None:
                await self._loads.join(key, partial(self._load, key, tenant=tenant))
            yield backbone
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._freed.set()

    async def has_changed(
        self, name: BackboneName, backbone: ServedBackbone, *, tenant: str
    ) -> bool:
        """Return whether a backbone's files have changed since it was loaded.

        If so, the next :meth:`hold` loads them; the loaded backbone is used no more, and evicted
        like any other.

        Raises:
            ModelError, OSError: it does not exist any more.
        """
        find = partial(_find_files, self._settings, name, device=self._device)
        files = await self._threads.run(find, tenant=tenant)
        if files.stamp == backbone.stamp:
            return False
        if self._kept.use((name, self._versions[name])) is backbone:
            self._versions[name] += 1
        return True

    async def _load(self, key: _Key, *, tenant: str) -> None:
        name = key[0]
        find = partial(_find_files, self._settings, name, device=self._device)
        files = await self._threads.run(find, tenant=tenant)
        source, size = files.source, files.size
        await self._reserve(size)
        try:
            load = partial(load_bare_backbone, source, device=self._device)
            loaded = await self._threads.run(load, tenant=tenant)
        finally:
            self._reserved -= size
            self._freed.set()
        _log.info("backbone loaded", model=name[0], revision=name[1])
        backbone = ServedBackbone(
            source, loaded.model, fingerprint=loaded.fingerprint, stamp=files.stamp
        )
        self._kept.put(key, backbone, size=backbone.nbytes)

    async def _reserve(self, size: int) -> None:
        """Wait until there is room for ``size`` bytes."""
        if not self._has_room(size):
            async with self._door:
                while not self._has_room(size):
                    self._freed.clear()
                    await self._freed.wait()
        self._reserved += size

    def _has_room(self, size: int) -> bool:
        """Evict unused backbones as needed; return whether there is room now."""
        taken = self._reserved + size
        for _, old in self._kept.shrink(is_used=self._users.__contains__, beside=taken):
            self._on_drop(old)
        is_alone = not self._kept and not self._reserved
        return is_alone or self._kept.held + taken <= self._kept.budget


@dataclass(frozen=True)
class _Files:
    """A backbone on the disk: its folder, the bytes of its weights in memory, a stamp of it."""

    source: ModelSource
    size: int
    stamp: str


def _find_files(settings: Settings, name: BackboneName, *, device: torch.device) -> _Files:
    source = find_backbone(settings, name)
    size = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    stored = load_config(source).dtype
    if isinstance(stored, torch.dtype):
        size = size * serving_dtype(stored, device=device).itemsize // stored.itemsize
    return _Files(source, size, stamp_of(source.path))
