"""Load the backbone that a head delta belongs to, with a task head of the right shape."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hifi.backbones.devices import serving_dtype
from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import backbone_dtype
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
from hifi.deltas.identity import check_architecture
from hifi.errors import (
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
        model: its task head has the delta's shapes.
        source: its folder and name.
        task: the task that the delta records.
    """

    model: PreTrainedModel
    source: ModelSource
    task: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the backbone is stored; that of a new task head may differ."""
        return backbone_dtype(self.model)

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
    delta.check_backbone(backbone.model)
    return backbone


def load_unchecked(source: ModelSource, *, delta: HeadDelta) -> LoadedBackbone:
    """Load a delta's backbone as :func:`load_backbone_at` does, without comparing fingerprints.

    The weights are memory-mapped and read only when used; computing a fingerprint would read all
    of them.

    Raises:
        BackboneMismatchError: the model has another architecture.
        TaskNotSupportedError, DeltaFileError, ModelError: as :func:`load_backbone`.
    """
    config = load_config(source)
    check_architecture(delta.metadata, name=source.name, architecture=config.model_type)
    task = configure_for(config, delta)
    loaded = load_for_task(
        source, config=config, auto_class=task.auto_class, attention="sdpa", seed=0
    )
    return LoadedBackbone(loaded.model, source, dict(delta.metadata.task or {}))


@dataclass(frozen=True)
class BareBackbone:
    """A backbone without a task head, on its device.

    Attributes:
        model: in the dtype in which it computes predictions, in eval mode.
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
    # All of it: a pooler that the file lacks has another dtype.
    cast_to(model, serving_dtype(model.dtype, device=device))
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
    _check_record(delta, config=config)
    task = kind(
        inputs=(),
        label="",
        metric=kind.declaration.metrics[0],
        classes=None if labels is None else tuple(labels),
    ).with_answers(record)
    for name, value in task.settings().items():
        setattr(config, name, value)
    if labels is None and "num_labels" in record:
        config.num_labels = record["num_labels"]
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
    delta.merge(cast_to(model, dtype or backbone.dtype))
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


def _check_record(delta: HeadDelta, *, config: PreTrainedConfig) -> None:
    """Raise for values that no tokenizer or model accepts; the file is not trusted."""
    task = dict(delta.metadata.task or {})
    vocabulary = getattr(config, "vocab_size", 0)
    counts = _possible_counts(delta)
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
        "num_labels": (
            lambda number: type(number) is int and number in counts,
            f"the number of its labels or logits, {' or '.join(map(str, sorted(counts)))},",
        ),
    }
    for name, (is_allowed, limit) in checks.items():
        if name in task and not is_allowed(task[name]):
            value = reprlib.repr(task[name])
            raise DeltaFileError(f"the head delta's task records {name}={value}: {limit} is needed")


def _possible_counts(delta: HeadDelta) -> set[int]:
    """Return the numbers of labels that fit a delta's names and its task head."""
    if delta.metadata.labels is not None:
        return {len(delta.metadata.labels)}
    return {len(tensor) for tensor in delta.task_head.values() if tensor.dim()}


def cast_to(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model, its task head included, in place."""
    return nn.Module.to(model, dtype=dtype)
