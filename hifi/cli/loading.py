"""Load the backbone that a head delta belongs to, with a task head of the right shape."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from hifi.errors import BackboneMismatchError, TaskNotSupportedError
from hifi.models import (
    ModelSource,
    load_config,
    load_for_task,
    load_image_processor,
    load_tokenizer,
    resolve_model,
)
from hifi.tasks import Task, get_task

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from hifi.delta import HeadDelta


@dataclass(frozen=True)
class LoadedBackbone:
    """A delta's backbone, fresh from disk, and where it was found.

    Attributes:
        model: at the dtype it is stored in, its task head shaped as the delta's.
        source: the folder and the name.
        task: what the delta records about its task.
    """

    model: PreTrainedModel
    source: ModelSource
    task: dict[str, Any]

    def save_processor(self, folder: Path) -> None:
        """Write the tokenizer or image processor, set to what the fine-tune used."""
        if "image" in self.task:
            load_image_processor(self.source).save_pretrained(folder)
            return
        tokenizer = load_tokenizer(self.source)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = self.task.get("pad_token") or tokenizer.eos_token
        tokenizer.padding_side = self.task.get("padding_side", tokenizer.padding_side)
        tokenizer.model_max_length = self.task.get("max_length", tokenizer.model_max_length)
        tokenizer.save_pretrained(folder)


def load_backbone(delta: HeadDelta, *, model: str | None, revision: str | None) -> LoadedBackbone:
    """Load the backbone that a delta was tuned on.

    Args:
        delta: says which task head it needs.
        model: a folder or name; the one that the delta names by default.
        revision: of a hub id; the one that the delta names, where the model is that one too.

    Raises:
        TaskNotSupportedError: the delta does not say what task it is for.
        ModelError: there is no such model, or it cannot be loaded.
        BackboneMismatchError: it is not the delta's backbone.
    """
    metadata = delta.metadata
    task = dict(metadata.task or {})
    kind = _task_type(task)
    if model is None:
        source = resolve_model(metadata.model, revision=revision or metadata.revision)
    else:
        source = resolve_model(model, revision=revision)
    config = load_config(source)
    described = kind(
        inputs=(),
        label="",
        metric=kind.metrics[0],
        classes=None if metadata.labels is None else tuple(metadata.labels),
    )
    for name, value in described.settings().items():
        setattr(config, name, value)
    if "pad_token_id" in task:
        config.pad_token_id = task["pad_token_id"]
    loaded = load_for_task(
        source, config=config, auto_class=kind.auto_class, attention="sdpa", seed=0
    )
    _check_backbone(delta, loaded.model)
    return LoadedBackbone(loaded.model, source, task)


def _task_type(task: dict[str, Any]) -> type[Task]:
    name = task.get("type")
    if not isinstance(name, str):
        raise TaskNotSupportedError(
            "the head delta does not record its task, so its task head cannot be built here; "
            "in Python, load the model with your task head and call delta.merge(model)"
        )
    return get_task(name)


def _check_backbone(delta: HeadDelta, model: PreTrainedModel) -> None:
    """Compare fingerprints at the stored dtype, and at the dtype of the tuning.

    A tuner that was given a model in memory knows only the latter.
    """
    try:
        delta.check_backbone(model)
    except BackboneMismatchError:
        tuned_at: torch.dtype = getattr(torch, delta.metadata.compute_dtype)
        if tuned_at == model.dtype:
            raise
        delta.check_backbone(cast_to(copy.deepcopy(model), tuned_at))


def cast_to(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model, its task head included, in place."""
    return nn.Module.to(model, dtype=dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars and printing reports of its own."""
    was_on = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if was_on:
            transformers_logging.enable_progress_bar()
