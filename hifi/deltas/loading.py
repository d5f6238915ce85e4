"""Load the backbone that a head delta belongs to, with a task head of the right shape."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.models import (
    ModelSource,
    find_folder,
    load_config,
    load_for_task,
    quiet_transformers,
    reads,
    resolve_model,
)
from hifi.backbones.packaged import PACKAGED_MODEL
from hifi.errors import (
    BackboneMismatchError,
    DeltaFileError,
    ModelError,
    TaskNotSupportedError,
)
from hifi.tasks import Task, get_task, task_types

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from hifi.deltas.delta import HeadDelta

_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class LoadedBackbone:
    """A delta's backbone, newly loaded from disk.

    Attributes:
        model: in the dtype in which it is stored; its task head has the delta's shapes.
        source: its folder and name.
        task: the task that the delta records.
    """

    model: PreTrainedModel
    source: ModelSource
    task: dict[str, Any]

    def load_processor(self) -> PreTrainedTokenizerBase | BaseImageProcessor:
        """Load the tokenizer or image processor, with the settings of the fine-tune.

        Afterwards tokenizer and model have the same pad token.

        Raises:
            ModelError: it is missing or cannot be loaded.
        """
        kind = _task_type(self.task)
        return kind.load_processor(self.source, self.model.config, record=self.task)


def load_backbone(delta: HeadDelta, *, model: str | None, revision: str | None) -> LoadedBackbone:
    """Find and load the backbone that a delta was tuned on.

    Args:
        delta: its task determines the task head.
        model: a folder or name; by default the one that the delta names, if that is the packaged
            model, a hub id, or the name of a folder in the working directory.
        revision: of a hub id; by default the delta's, if the model is the delta's too.

    Raises:
        TaskNotSupportedError: the delta does not record its task.
        DeltaFileError: the delta records an impossible pad token, padding side or length.
        ModelError: the model does not exist or cannot be loaded.
        BackboneMismatchError: the model is not the delta's backbone.
    """
    _task_type(dict(delta.metadata.task or {}))  # refuse before a download
    if model is None:
        source = _named_backbone(delta, revision=revision or delta.metadata.revision)
    else:
        source = resolve_model(model, revision=revision)
    return load_backbone_at(source, delta=delta)


def load_backbone_at(source: ModelSource, *, delta: HeadDelta) -> LoadedBackbone:
    """Load the backbone that a delta was tuned on from a known folder, as :func:`load_backbone`."""
    backbone = load_unchecked(source, delta=delta)
    _check_backbone(delta, backbone.model)
    return backbone


def load_unchecked(source: ModelSource, *, delta: HeadDelta) -> LoadedBackbone:
    """Load a delta's backbone as :func:`load_backbone_at` does, without comparing fingerprints.

    The weights are memory-mapped and read only when used; computing a fingerprint would read all
    of them.
    """
    config = load_config(source)
    task = configure_for(config, delta)
    loaded = load_for_task(
        source, config=config, auto_class=task.auto_class, attention="sdpa", seed=0
    )
    return LoadedBackbone(loaded.model, source, dict(delta.metadata.task or {}))


@dataclass(frozen=True)
class BareBackbone:
    """A backbone without a task head, on its device.

    Attributes:
        model: in the dtype in which it is stored, in eval mode.
        fingerprint: of the backbone as stored.
    """

    model: PreTrainedModel
    fingerprint: str


def load_bare_backbone(source: ModelSource, *, device: torch.device) -> BareBackbone:
    """Load a backbone for head deltas of any task.

    Args:
        source: the model.
        device: where the model will run.

    Raises:
        ModelError: the model cannot be loaded, no task type reads its inputs, or it reads texts and
            has no tokenizer.
        UnsupportedArchitectureError: the model's architecture is not supported.
    """
    config = load_config(source)
    kinds = [get_task(name) for name in task_types()]
    kind = next((each for each in kinds if reads(config, auto_class=each.auto_class)), kinds[0])
    kind.check_reads(source, config)
    loaded = load_for_task(
        source, config=config, auto_class=kind.auto_class, attention="sdpa", seed=0
    )
    model = cast("PreTrainedModel", loaded.model.base_model)
    fingerprint = backbone_fingerprint(model)
    kind.set_padding(source, model.config)
    cast_to(model, model.dtype)  # a pooler that the file lacks has another dtype
    return BareBackbone(model.to(device=device), fingerprint)  # type: ignore[call-arg]


def configure_for(config: PreTrainedConfig, delta: HeadDelta) -> Task:
    """Set the configuration of a backbone for a delta's task.

    Args:
        config: changed in place.
        delta: records its task.

    Returns:
        The task, with its classes but without its columns, which not every delta records.

    Raises:
        TaskNotSupportedError: the delta does not record its task.
        DeltaFileError: the delta records an impossible pad token, padding side or length.
    """
    record = dict(delta.metadata.task or {})
    kind, labels = _task_type(record), delta.metadata.labels
    task = kind(
        inputs=(),
        label="",
        metric=kind.declaration.metrics[0],
        classes=None if labels is None else tuple(labels),
    )
    for name, value in task.settings().items():
        setattr(config, name, value)
    _check_record(record, config=config)
    if "pad_token_id" in record:
        config.pad_token_id = record["pad_token_id"]
    return task


def write_merged_model(
    folder: Path,
    *,
    delta: HeadDelta,
    backbone: LoadedBackbone,
    dtype: torch.dtype | None = None,
) -> None:
    """Merge a delta into its backbone, and write the plain model with its tokenizer or processor.

    Args:
        folder: where to write the files, in the ``save_pretrained`` layout.
        delta: the delta to merge.
        backbone: of the delta; its model is changed in place.
        dtype: of the merged model; by default that in which the backbone is stored.

    Raises:
        ModelError: the backbone's tokenizer or image processor is missing or cannot be loaded.
        BackboneMismatchError, TaskHeadMismatchError: as in ``HeadDelta.merge``.
    """
    processor, model = backbone.load_processor(), backbone.model
    delta.merge(cast_to(model, dtype or model.dtype))
    with quiet_transformers():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _named_backbone(delta: HeadDelta, *, revision: str | None) -> ModelSource:
    """Find the backbone that a delta names; a folder's name is never looked up on the hub."""
    name = delta.metadata.model
    is_known = name == PACKAGED_MODEL or "/" in name or revision is not None
    if not is_known and find_folder(Path(name)) is None:
        raise ModelError(
            f"the head delta names its backbone only as {name!r}, and no such folder exists here: "
            "pass the backbone with --model (a folder, or a hub id)"
        )
    return resolve_model(name, revision=revision)


def _task_type(task: dict[str, Any]) -> type[Task]:
    name = task.get("type")
    if not isinstance(name, str):
        raise TaskNotSupportedError(
            "the head delta does not record its task, so its task head cannot be built here; "
            "in Python, load the model with your task head and call delta.merge(model)"
        )
    return get_task(name)


def _check_record(task: Mapping[str, Any], *, config: PreTrainedConfig) -> None:
    """Raise for values that no tokenizer or model accepts; the file is not trusted."""
    vocabulary = getattr(config, "vocab_size", 0)
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "pad_token_id": (
            lambda token: type(token) is int and 0 <= token < vocabulary,
            f"one of the backbone's {vocabulary} tokens, counted from 0",
        ),
        "padding_side": (lambda side: side in ("left", "right"), "left or right"),
        "max_length": (
            lambda length: type(length) is int and 1 <= length <= _MOST_TOKENS,
            f"an integer from 1 to {_MOST_TOKENS}",
        ),
    }
    for name, (is_allowed, limit) in checks.items():
        if name in task and not is_allowed(task[name]):
            value = reprlib.repr(task[name])
            raise DeltaFileError(f"the head delta's task records {name}={value}: {limit} is needed")


def _check_backbone(delta: HeadDelta, model: PreTrainedModel) -> None:
    """Compare fingerprints in the stored dtype, and in the dtype of the tuning.

    A tuner of a model in memory knows only the latter.
    """
    tuned_at: torch.dtype = getattr(torch, delta.metadata.compute_dtype)
    try:
        delta.check_backbone(model)
    except BackboneMismatchError:
        if tuned_at == model.dtype:
            raise
        cast = cast_to(copy.deepcopy(model), tuned_at)
        if backbone_fingerprint(cast) != delta.metadata.fingerprint:
            raise  # this error has the fingerprint as stored, which is the one that users see


def cast_to(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model, its task head included, in place."""
    return nn.Module.to(model, dtype=dtype)
