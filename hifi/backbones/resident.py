"""Backbones that stay in memory between fine-tunes, each used by one fine-tune at a time."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hifi.arguments import check_count
from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import task_head_names
from hifi.backbones.models import LoadedModel, ModelSource

_READ = ("config.json", "*.safetensors", "*.safetensors.index.json")
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True)
class PlacedModel:
    """A model with its task head, on its device and in its dtype.

    Attributes:
        loaded: the model; its task head has the dtype of the rest.
        fingerprint: of the backbone as stored.
    """

    loaded: LoadedModel
    fingerprint: str


NewModel = Callable[[ModelSource], LoadedModel]  # load_for_task with a task's arguments
Load = Callable[[ModelSource, NewModel, torch.device, torch.dtype], PlacedModel]  # load_on_device


def load_on_device(
    source: ModelSource, new_model: NewModel, device: torch.device, dtype: torch.dtype
) -> PlacedModel:
    """Load a backbone with its task head, and move it to its device and dtype.

    Args:
        source: the backbone's folder.
        new_model: :func:`load_for_task` with the task's arguments.
        device: where the model will run.
        dtype: of the whole model.

    Raises:
        ModelError, UnsupportedArchitectureError: as ``load_for_task`` and ``backbone_fingerprint``.
    """
    loaded = new_model(source)
    fingerprint = backbone_fingerprint(loaded.model)
    loaded.model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    return PlacedModel(loaded, fingerprint)


@dataclass(frozen=True)
class _Key:
    """The key of a resident: one folder's weights on one device in one dtype."""

    folder: str
    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> _Key:
        has_number = device.type == "cpu" or device.index is not None
        name = str(device) if has_number else f"cuda:{torch.cuda.current_device()}"
        return cls(str(source.path.resolve()), name, dtype)


@dataclass(eq=False, kw_only=True)
class _Resident:
    """The weights of a backbone in memory, by parameter name, for every model built from it."""

    stamp: str  # identifies the version of its files
    fingerprint: str  # of the backbone as stored
    weights: dict[str, Tensor] = field(default_factory=dict)
    checksums: dict[str, bytes] = field(default_factory=dict)  # of the weights
    is_lent: bool = True  # a fine-tune may be writing into the weights

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())

    def share_with(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace the weights of a newly loaded model, before its own are read from disk."""
        for name in parameters.keys() & self.weights.keys():
            parameters[name].data = self.weights[name]

    def learn(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep the weights of a model on its device that are not kept yet."""
        new = {name: parameters[name].data for name in parameters.keys() - self.weights.keys()}
        self.checksums.update({name: _checksum(tensor) for name, tensor in new.items()})
        self.weights = {**self.weights, **new}  # another thread may be iterating over the old dict

    def changed(self) -> list[str]:
        """Return the names of the weights that have changed since they were loaded."""
        return [
            name
            for name, tensor in self.weights.items()
            if _checksum(tensor) != self.checksums[name]
        ]


class ResidentBackbones:
    """Keeps the weights of backbones in memory for the next fine-tune.

    Every fine-tune gets its own model with a task head of its own, but all fine-tunes share the
    backbone's weights, which are neither copied nor read again. A fine-tune changes some rows in
    place and restores them at its end. Before each further use the weights are compared with what
    was loaded. If they differ, they are read from disk again, with a warning; if the files have
    changed, they are read again without a warning.

    Only one fine-tune at a time uses a resident backbone. If a second one needs it meanwhile, it
    loads its own copy.

    Args:
        max_bytes: of all weights together, on all devices; the least recently used backbone is
            evicted first. A backbone larger than this is not kept.

    Raises:
        InvalidArgumentError: ``max_bytes`` is not a positive integer.

    Example:
        >>> backbones = ResidentBackbones(max_bytes=8 << 30)
        >>> for train in splits:
        ...     finetune(model="all-MiniLM-L6-v2", train=train, backbones=backbones)
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = check_count("max_bytes", max_bytes, most=None, of="bytes")
        self._residents: dict[_Key, _Resident] = {}  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of backbones in memory."""
        return len(self._residents)

    @property
    def nbytes(self) -> int:
        """The bytes of all weights in memory."""
        with self._lock:
            return sum(resident.nbytes for resident in self._residents.values())

    def clear(self) -> None:
        """Evict every backbone that is not in use."""
        self._make_room(self._max_bytes)

    @contextmanager
    def job(self) -> Iterator[Load]:
        """Let one fine-tune use the backbones.

        Yields:
            A function like :func:`load_on_device`. By the end of the block, every model that it
            returned must have its backbone's original weights again; the models must not be used
            after the block.
        """
        lent: list[_Resident] = []
        try:
            yield partial(self._load, lent)
        finally:
            for resident in lent:
                resident.is_lent = False

    def _load(
        self,
        lent: list[_Resident],
        source: ModelSource,
        new_model: NewModel,
        device: torch.device,
        dtype: torch.dtype,
    ) -> PlacedModel:
        """Load a model, with its weights from memory if they are there."""
        stamp = _stamp(source.path)
        # This makes the modules and the task head, and finds out which weights the files lack. The
        # files are memory-mapped: weights that are replaced below are never read.
        loaded = new_model(source)
        parameters = _backbone_parameters(loaded)
        key = _Key.of(source, device=device, dtype=dtype)
        resident = self._borrow(key, stamp=stamp, lent=lent)
        if resident is None:
            resident = _Resident(stamp=stamp, fingerprint=backbone_fingerprint(loaded.model))
            self._make_room(sum(map(nn.Parameter.numel, parameters.values())) * dtype.itemsize)
        else:
            resident.share_with(parameters)
        loaded.model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        resident.learn(parameters)
        self._keep(key, resident, lent=lent)
        return PlacedModel(loaded, resident.fingerprint)

    def _borrow(self, key: _Key, *, stamp: str, lent: list[_Resident]) -> _Resident | None:
        """Return an unused and unchanged resident, marked as most recently used."""
        with self._lock:
            resident = self._residents.get(key)
            if resident is None or resident.is_lent:
                return None
            del self._residents[key]  # other threads must not get it until it is verified
        if resident.stamp != stamp:
            return None
        changed = resident.changed()
        if changed:
            warnings.warn(
                f"{len(changed)} weights of {key.folder} have changed in memory since they were "
                f"loaded ({changed[0]}): reading the backbone from disk again",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        resident.is_lent = True
        self._keep(key, resident, lent=lent)
        return resident

    def _keep(self, key: _Key, resident: _Resident, *, lent: list[_Resident]) -> None:
        """Add a resident as most recently used, if it fits and its key is not taken."""
        with self._lock:
            if key not in self._residents and resident.nbytes <= self._max_bytes:
                self._residents[key] = resident
                lent.append(resident)

    def _make_room(self, nbytes: int) -> None:
        """Evict unused residents until ``nbytes`` bytes are free."""
        with self._lock:
            held = sum(resident.nbytes for resident in self._residents.values())
            for key, resident in list(self._residents.items()):
                if held + nbytes <= self._max_bytes:
                    return
                if not resident.is_lent:
                    held -= resident.nbytes
                    del self._residents[key]


def _backbone_parameters(loaded: LoadedModel) -> dict[str, nn.Parameter]:
    """Return the parameters that come from the checkpoint; tied parameters appear once."""
    head = set(task_head_names(loaded.model, extra=loaded.task_head_modules))
    return {
        name: parameter for name, parameter in loaded.model.named_parameters() if name not in head
    }


def _stamp(folder: Path) -> str:
    """Return a text that changes when a model's files change, without opening them."""
    files = sorted(path for pattern in _READ for path in folder.glob(pattern))
    facts = [(path.name, path.stat()) for path in files]
    return repr([(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in facts])


def _checksum(weights: Tensor) -> bytes:
    """Hash the integer sums of a weight along each of its dimensions.

    The sums are computed on the weight's own device: a GPU does that a hundred times faster than
    it could copy the weight to the CPU, and a CPU in a quarter of the time of a SHA-256. Changing
    or swapping rows changes the sums.
    """
    bits = _as_integers(weights.detach().contiguous())
    sums = [bits] if bits.dim() == 1 else [bits.sum(dim, dtype=torch.int64) for dim in (0, 1)]
    digest = hashlib.sha256()
    for part in sums:
        digest.update(part.cpu().numpy().tobytes())
    return digest.digest()


def _as_integers(weights: Tensor) -> Tensor:
    """View a contiguous weight as a vector or matrix of the widest integers that fit."""
    rows = weights.reshape(len(weights), -1) if weights.dim() > 1 else weights.reshape(-1)
    nbytes = rows.shape[-1] * rows.element_size()
    width = next(width for width in _INTEGERS if nbytes % width == weights.data_ptr() % width == 0)
    return rows.view(torch.uint8).view(_INTEGERS[width])
