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

from hifi.backbones.models import ModelSource, download_model, identify_folder
from hifi.deltas.loading import load_bare_backbone
from hifi.errors import BackboneMismatchError, ModelError
from hifi.serving.bank import HeadBank
from hifi.serving.prediction import TaskRecord
from worker.inference.recency import LeastRecentlyUsed
from worker.inference.turns import FairPool, SingleFlight
from worker.models import find_backbones

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta
    from hifi.serving.bank import PackedDelta
    from hifi.tasks import Encoder
    from store.settings import Settings

BackboneName: TypeAlias = tuple[str, str | None]  # id, or hub id and commit
_LOADERS = 4  # threads: downloads wait for the hub most of the time
_ENCODERS = 16  # of one backbone: each has a tokenizer of its own
_log = structlog.get_logger(__name__)


def find_backbone(settings: Settings, name: BackboneName) -> ModelSource:
    """Find a backbone by its id, or by its hub id and commit; never by a path.

    Args:
        settings: where backbones are, and whether the hub may be asked.
        name: of it.

    Raises:
        ModelError: there is none.
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
    """A head delta in host memory, ready for its backbone's device.

    Attributes:
        record: what it says about predictions.
        packed: its weights.
    """

    record: TaskRecord
    packed: PackedDelta


class ServedBackbone:
    """A bare backbone on its device.

    Args:
        source: where it was found.
        model: the backbone, in eval mode.
        fingerprint: of it as stored.

    Attributes:
        is_dropped: whether it was let go of: the tiers keep nothing of it any more.
    """

    def __init__(self, source: ModelSource, model: PreTrainedModel, *, fingerprint: str) -> None:
        self.model = model
        self.bank = HeadBank(model)
        self.is_dropped = False
        self._source = source
        self._fingerprint = fingerprint
        self._encoders: LeastRecentlyUsed[object, Encoder] = LeastRecentlyUsed(_ENCODERS)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Count the bytes of its weights."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def load(self, delta: HeadDelta) -> LoadedDelta:
        """Lay a head delta out for this backbone.

        Raises:
            BackboneMismatchError: it is another backbone's.
            TaskNotSupportedError, TaskHeadMismatchError, DeltaFileError: no prediction can be made
                of what it holds or says.
        """
        if delta.metadata.fingerprint != self._fingerprint:
            raise BackboneMismatchError(
                f"the head delta was tuned on {delta.metadata.model!r} with the fingerprint "
                f"{delta.metadata.fingerprint}; this backbone's is {self._fingerprint}"
            )
        return LoadedDelta(TaskRecord.of(delta, self.model.config), self.bank.pack(delta))

    def encoder_for(self, record: TaskRecord) -> Encoder:
        """Return what encodes the inputs of a task; loaded where none of its kind is at hand.

        Raises:
            ModelError, InvalidArgumentError: as ``TaskRecord.load_encoder``.
        """
        with self._lock:
            encoder = self._encoders.use(record.encoding)
        if encoder is None:  # two that are loaded at once do no harm
            encoder = record.load_encoder(self._source, self.model)
            with self._lock:
                self._encoders.put(record.encoding, encoder, size=1)
                self._encoders.shrink(is_used=lambda _: False)
        return encoder


class Backbones:
    """Loads backbones, and keeps those that were used last. Used on one event loop.

    There is never more of them than the budget allows, but for a single one that is larger: before
    one is loaded, those that nobody uses make room; where that is not enough, it waits for users to
    end, and no new ones begin until it has its room.

    Args:
        settings: where they are, and how many bytes of them are kept.
        device: where they compute.
        on_drop: told of each that is let go of; nobody uses it any more.
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
        self._kept: LeastRecentlyUsed[BackboneName, ServedBackbone] = LeastRecentlyUsed(
            settings.infer_backbone_bytes
        )
        self._users: Counter[BackboneName] = Counter()
        self._reserved = 0  # bytes of those that are being loaded
        self._door = asyncio.Lock()  # closed while one waits for room
        self._freed = asyncio.Event()
        self._loads: SingleFlight[BackboneName, None] = SingleFlight()
        self._threads = FairPool(_LOADERS, most_each=1, spare=0, name="backbone")

    def __len__(self) -> int:
        return len(self._kept)

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.close()

    @asynccontextmanager
    async def hold(self, name: BackboneName, *, tenant: str) -> AsyncIterator[ServedBackbone]:
        """Use a backbone for the time of a block; where it is not in memory, it is loaded first.

        Args:
            name: of it.
            tenant: who wants it; loading is given to tenants in turn.

        Raises:
            ModelError, UnsupportedArchitectureError, OSError: there is none that can be loaded.
            torch.OutOfMemoryError: the device has no memory for it.
        """
        if self._door.locked():
            async with self._door:
                pass
        self._users[name] += 1  # before it is there, so that it is not let go of again at once
        try:
            while (backbone := self._kept.use(name)) is None:
                await self._loads.join(name, partial(self._load, name, tenant=tenant))
            yield backbone
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._freed.set()

    async def _load(self, name: BackboneName, *, tenant: str) -> None:
        find = partial(_find_with_size, self._settings, name)
        source, size = await self._threads.run(find, tenant=tenant)
        await self._reserve(size)
        try:
            load = partial(load_bare_backbone, source, device=self._device)
            loaded = await self._threads.run(load, tenant=tenant)
        finally:
            self._reserved -= size
            self._freed.set()
        _log.info("backbone loaded", model=name[0], revision=name[1])
        backbone = ServedBackbone(source, loaded.model, fingerprint=loaded.fingerprint)
        self._kept.put(name, backbone, size=backbone.nbytes)

    async def _reserve(self, size: int) -> None:
        """Wait until there is room for so many bytes."""
        if not self._has_room(size):
            async with self._door:
                while not self._has_room(size):
                    self._freed.clear()
                    await self._freed.wait()
        self._reserved += size

    def _has_room(self, size: int) -> bool:
        """Let go of what nobody uses as far as that is needed, and say whether it was enough."""
        taken = self._reserved + size
        for _, old in self._kept.shrink(is_used=self._users.__contains__, beside=taken):
            self._on_drop(old)
        is_alone = not self._kept and not self._reserved
        return is_alone or self._kept.held + taken <= self._kept.budget


def _find_with_size(settings: Settings, name: BackboneName) -> tuple[ModelSource, int]:
    source = find_backbone(settings, name)
    return source, sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
