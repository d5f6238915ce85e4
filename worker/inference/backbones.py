"""Backbones in memory, each with its bank of head deltas and its readers of inputs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import structlog

from hifi.bank import HeadBank
from hifi.errors import BackboneMismatchError, ModelError
from hifi.loading import load_bare_backbone
from hifi.models import ModelSource, download_model, identify_folder
from hifi.prediction import InputReader, TaskRecord
from worker.inference.recency import LeastRecentlyUsed
from worker.models import find_backbones

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hifi.bank import PackedDelta
    from hifi.delta import HeadDelta
    from store.settings import Settings

BackboneName: TypeAlias = tuple[str, str | None]  # id, or hub id and commit
_READERS = 16  # of one backbone: each has a tokenizer of its own
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
    """

    def __init__(self, source: ModelSource, model: PreTrainedModel, *, fingerprint: str) -> None:
        self.model = model
        self.bank = HeadBank(model)
        self._source = source
        self._fingerprint = fingerprint
        self._readers: LeastRecentlyUsed[object, InputReader] = LeastRecentlyUsed(_READERS)
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

    def reader_for(self, record: TaskRecord) -> InputReader:
        """Give what encodes the inputs of a task; loaded where none of its kind is at hand.

        Raises:
            ModelError, InvalidArgumentError: as ``TaskRecord.load_reader``.
        """
        with self._lock:
            reader = self._readers.use(record.encoding)
        if reader is None:  # two that are loaded at once do no harm
            reader = record.load_reader(self._source, self.model)
            with self._lock:
                self._readers.put(record.encoding, reader, size=1)
                self._readers.shrink(is_used=lambda _: False)
        return reader


class Backbones:
    """Loads backbones, and keeps those that were used last.

    Args:
        settings: where they are, and how many bytes of them are kept; those in use are kept all
            the same.
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
        self._lock = threading.Lock()
        self._kept: LeastRecentlyUsed[BackboneName, ServedBackbone] = LeastRecentlyUsed(
            settings.infer_backbone_bytes
        )
        self._users: Counter[BackboneName] = Counter()
        self._loading: dict[BackboneName, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def hold(self, name: BackboneName) -> Iterator[None]:
        """Let go of no backbone of that name for the time of a block."""
        with self._lock:
            self._users[name] += 1
            self._loading.setdefault(name, threading.Lock())
        try:
            yield
        finally:
            with self._lock:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name], self._loading[name]

    def find(self, name: BackboneName) -> ServedBackbone | None:
        """Give a backbone that is in memory."""
        with self._lock:
            return self._kept.use(name)

    def load(self, name: BackboneName) -> ServedBackbone:
        """Give a backbone that the caller holds; where it is not in memory, that takes seconds.

        Raises:
            ModelError, UnsupportedArchitectureError, OSError: there is none that can be loaded.
        """
        with self._loading[name]:  # one of those who want it loads it
            backbone = self.find(name)
            if backbone is None:
                backbone = self._load(name)
                self._keep(name, backbone)
            return backbone

    def _load(self, name: BackboneName) -> ServedBackbone:
        source = find_backbone(self._settings, name)
        loaded = load_bare_backbone(source, device=self._device)
        _log.info("backbone loaded", model=name[0], revision=name[1])
        return ServedBackbone(source, loaded.model, fingerprint=loaded.fingerprint)

    def _keep(self, name: BackboneName, backbone: ServedBackbone) -> None:
        with self._lock:
            self._kept.put(name, backbone, size=backbone.nbytes)
            dropped = self._kept.shrink(is_used=self._users.__contains__)
        for _, old in dropped:
            self._on_drop(old)
