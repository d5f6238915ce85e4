"""Prepare a fine-tune: encode the data and load the model with a fresh task head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hifi.backbones.devices import resolve_attention, resolve_dtype
from hifi.backbones.models import (
    LoadedModel,
    ModelSource,
    load_config,
    load_for_task,
    max_positions,
)
from hifi.backbones.resident import load_on_device
from hifi.canonical import canonical_json
from hifi.data.splits import Source, load_split
from hifi.errors import InvalidArgumentError, shorten
from hifi.selection.scoring import sample_indices
from hifi.tasks import Encoder, Examples, Task, TaskSpec, make_task
from hifi.training.batching import evaluation_batches

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.resident import Load
    from hifi.data.settings import Hyperparameters

_NAMED_CLASSES, _CHARACTERS = 6, 30  # classes in a summary, and characters of each
_SETTING_BYTES = 30  # longer settings are hashed, and not quoted in error messages


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """The encoded splits."""

    task: Task
    encoder: Encoder
    train: Examples
    validation: Examples | None

    def describe(self) -> dict[str, Any]:
        """Return the record of the task for predictions, as plain JSON."""
        return {**self.task.describe(), **self.encoder.metadata}


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A model on its device, and its data.

    Attributes:
        fingerprint: of the backbone as stored.
    """

    source: ModelSource
    loaded: LoadedModel
    data: TaskData
    fingerprint: str

    def summary(self) -> str:
        """Describe the inferred task and the data in one line for people."""
        task, validation = self.data.task, self.data.validation
        classes = task.classes or ()
        names = ", ".join(
            shorten(str(name), characters=_CHARACTERS) for name in classes[:_NAMED_CLASSES]
        )
        more = ", …" if len(classes) > _NAMED_CLASSES else ""
        rows = f"{len(self.data.train)} rows"
        if validation is not None:
            rows += f", {len(validation)} validation rows"
        model = self.loaded.model
        return (
            f"{task.type} of {' and '.join(task.inputs)} by {task.label}"
            + (f" ({len(classes)} classes: {names}{more})" if classes else "")
            + f"; {rows}; {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
        )


def prepare(
    source: ModelSource,
    *,
    spec: TaskSpec,
    train: Source,
    validation: Source | None,
    settings: Hyperparameters,
    device: torch.device,
    load: Load = load_on_device,
) -> Prepared:
    """Read the data, load the model, and move it to its device and dtype.

    Args:
        source: the model.
        spec: the task; missing parts are inferred.
        train: the training split.
        validation: the validation split, if there is one.
        settings: the hyperparameters.
        device: where the model will run.
        load: loads the model; by default every call loads a new one.

    Raises:
        InvalidArgumentError: ``max_length`` is more than the model reads.
        DataError, ModelError, TaskNotSupportedError, UnsupportedArchitectureError: the data or the
            model cannot be used.
    """
    dtype = resolve_dtype(settings.precision, device=device)
    config = load_config(source)
    data = _load_data(
        source, config, spec=spec, train=train, validation=validation, settings=settings
    )
    attention = resolve_attention(
        device=device, dtype=dtype, max_length=data.encoder.sequence_length
    )
    new_model = partial(
        load_for_task,
        config=config,
        auto_class=data.task.auto_class,
        attention=attention,
        seed=settings.seed,
    )
    placed = load(source, new_model, device, dtype)
    limit = max_positions(placed.loaded.model)
    if limit is not None and settings.max_length > limit:
        raise InvalidArgumentError(
            "max_length", value=settings.max_length, limit=f"{source.name} reads {limit} tokens"
        )
    return Prepared(source=source, loaded=placed.loaded, data=data, fingerprint=placed.fingerprint)


def describe_job(
    ready: Prepared, *, settings: Hyperparameters, selection: Mapping[str, Any]
) -> dict[str, str]:
    """Return a description of a run, part by part; checkpoints with another one are refused.

    Args:
        ready: the encoded data and the model, not tuned yet.
        settings: the hyperparameters.
        selection: what the selection depends on, as plain JSON.

    Returns:
        Names to texts: settings as text, everything else as a hash.
    """
    source, data, model = ready.source, ready.data, ready.loaded.model
    job = {
        "model": [source.name, source.revision, ready.fingerprint, str(model.dtype)],
        "device": model.device.type,  # types differ in computed bits and random states
        "task": [data.describe(), data.task.classes],
        "train": data.train.digest(),
        "validation": None if data.validation is None else data.validation.digest(),
    }
    parts = {name: hashlib.sha256(canonical_json(value)).hexdigest() for name, value in job.items()}
    for name, value in {**selection, **settings.describe()}.items():
        text = canonical_json(value)
        is_short = len(text) <= _SETTING_BYTES
        parts[name] = text.decode() if is_short else hashlib.sha256(text).hexdigest()
    return parts


def _load_data(
    source: ModelSource,
    config: PreTrainedConfig,
    *,
    spec: TaskSpec,
    train: Source,
    validation: Source | None,
    settings: Hyperparameters,
) -> TaskData:
    """Read and encode the splits, and add the task's settings to the configuration."""
    columns = spec.columns if spec.names_all_columns else None
    dataset = load_split(train, split="train", columns=columns)
    task = make_task(spec, dataset)
    task.check_reads(source, config)
    for name, value in task.settings().items():
        setattr(config, name, value)
    encoder = task.load_encoder(source, config, max_length=settings.max_length)

    def encode(dataset: Dataset, split: str) -> Examples:
        targets = task.targets(dataset, split=split)
        return encoder.encode(dataset, split=split, targets=targets)

    examples, held_out = encode(dataset, "train"), None
    if validation is not None:
        dataset = load_split(validation, split="validation", columns=task.columns)
        held_out = encode(dataset, "validation")
    return TaskData(task=task, encoder=encoder, train=examples, validation=held_out)


def calibration_batches(
    ready: Prepared, *, n: int, settings: Hyperparameters
) -> Iterator[Mapping[str, Tensor]]:
    """Iterate over ``n`` calibration samples of the training split, drawn by the seed (Alg. 1).

    Yields:
        Batches as ``select_heads`` takes them, on the model's device, the longest first.
    """
    train, model = ready.data.train, ready.loaded.model
    drawn = np.array(sample_indices(len(train), n=n, seed=settings.seed))
    for chosen in evaluation_batches(train.lengths[drawn], batch_size=settings.batch_size):
        yield train.batch(drawn[chosen]).to(model.device, dtype=model.dtype).inputs
