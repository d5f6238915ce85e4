"""Describe a backbone, so that the gateway can plan jobs on it without loading it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import (
    Backbone,
    HeadId,
    backbone_dtype,
    describe,
    read_rows,
    task_head_names,
)
from hifi.backbones.models import (
    AutoClass,
    LoadedModel,
    ModelSource,
    identify_folder,
    load_config,
    load_for_task,
    max_positions,
)
from hifi.backbones.resident import PlacedModel
from hifi.data.classes.stored_head import StoredHead
from hifi.deltas.loading import cast_to
from hifi.deltas.metadata import ENCODINGS
from hifi.errors import ModelError
from hifi.selection.head_selection import HeadSelection, LayerScores
from hifi.tasks import Task, get_task, task_types
from hifi.tuning.tuner import HeadTuner
from store.jobs.workers import BackboneDescription

_MAX_LENGTH = 128
_LABELS = (2, 3)  # the difference is the cost of one label


def describe_backbone(identifier: str, path: Path) -> BackboneDescription:
    """Describe a backbone.

    The counts are those of ``hifi.finetune``: n selected heads of a task with m logits
    train ``n · weights_per_head + base + m · per_label`` weights, of
    ``parameters + base + m · per_label`` in all.

    Returns:
        Its sizes, its fingerprint as stored, and for every supported task type ``base``,
        ``per_label`` and ``file``: ``base``, ``per_head`` and ``per_label`` in bytes, by encoding;
        also ``stored``, the labels of the checkpoint's own task head, if it has one of this kind.

    Raises:
        ModelError: it cannot be loaded, or supports no task type.
        UnsupportedArchitectureError: its architecture is not supported.
    """
    source = identify_folder(path)
    load_config(source)  # raise here what is wrong for all tasks
    heads: dict[AutoClass, tuple[PlacedModel, dict[str, Any]]] = {}
    task_heads: dict[str, dict[str, Any]] = {}
    refusals: list[str] = []
    for name in task_types():
        kind = get_task(name)
        try:
            _check_encoder(kind, source)
            if kind.auto_class not in heads:
                heads[kind.auto_class] = _count_task_head(kind, source)
        except ModelError as error:
            refusals.append(f"{name}: {error}")
        else:
            task_heads[name] = heads[kind.auto_class][1]
    if not task_heads:
        raise ModelError(f"{identifier} supports no task type: {'; '.join(refusals)}")
    placed, _ = next(iter(heads.values()))
    return _describe(identifier, placed, task_heads=task_heads)


def _describe(
    identifier: str, placed: PlacedModel, *, task_heads: dict[str, dict[str, Any]]
) -> BackboneDescription:
    loaded = placed.loaded
    model, backbone = loaded.model, describe(loaded.model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return BackboneDescription(
        id=identifier,
        architecture=backbone.architecture,
        num_layers=backbone.num_layers,
        num_heads=backbone.num_query_heads,
        num_key_value_heads=backbone.num_heads,
        head_dim=backbone.head_dim,
        hidden_size=backbone.hidden_size,
        parameters=weights - _task_head_weights(loaded),
        fingerprint=placed.fingerprint,
        max_positions=max_positions(model),
        weights_per_head=_weights_per_head(loaded, backbone),
        task_heads=task_heads,
    )


def _weights_per_head(loaded: LoadedModel, backbone: Backbone) -> int:
    """Return the number of weights in one head's query, key and value rows."""
    rows = [read_rows(loaded.model, part, 0) for part in backbone.layers[0].projections]
    return sum(w.numel() + (0 if bias is None else bias.numel()) for w, bias in rows)


def _check_encoder(kind: type[Task], source: ModelSource) -> None:
    """Check that the model accepts the task's inputs and has a tokenizer or image processor.

    Raises:
        ModelError: it does not.
    """
    config = load_config(source)
    kind.check_reads(source, config)
    layout = kind.declaration.layouts[0]
    task = kind(inputs=layout.fields[:-1], label="label", metric=kind.declaration.metrics[0])
    task.load_encoder(source, config, max_length=_MAX_LENGTH)


def _count_task_head(kind: type[Task], source: ModelSource) -> tuple[PlacedModel, dict[str, Any]]:
    """Build the task's model with two numbers of labels and return the smaller, with sizes."""
    fewer, more = (_load(kind, source, num_labels=labels) for labels in _LABELS)
    weights = _task_head_weights(fewer.loaded)
    per_label = _task_head_weights(more.loaded) - weights
    sizes = {
        "base": weights - _LABELS[0] * per_label,
        "per_label": per_label,
        "file": _measure_files(fewer, more),
    }
    has_own = fewer.loaded.head == "replaced"
    return fewer, {**sizes, "stored": _stored_labels(source)} if has_own else sizes


def _stored_labels(source: ModelSource) -> dict[str, Any]:
    """Return the number of labels of a checkpoint's own task head, their names and their meaning.

    Names with NUL, which Postgres cannot store, are left out.
    """
    config = load_config(source)
    head = StoredHead.of(config.id2label, problem_type=config.problem_type)
    names = list(head.names or ())
    is_named = bool(names) and "\0" not in "".join(names)
    return {
        "num_labels": head.num_labels,
        "names": names if is_named else None,
        "problem_type": head.problem_type,
    }


def _measure_files(fewer: PlacedModel, more: PlacedModel) -> dict[str, dict[str, int]]:
    """Measure files of untrained deltas: of one and two heads, with two numbers of labels.

    Returns:
        By encoding ``base``, ``per_head`` and ``per_label``: a file with n heads and m labels has
        about ``base + n · per_head + m · per_label`` bytes.
    """
    backbone = describe(fewer.loaded.model)
    layers, of_layer = range(backbone.num_layers), range(backbone.num_heads)
    heads = [HeadId(layer, head) for layer in layers for head in of_layer][-2:]
    one = _file_bytes(fewer, heads[:1], labels=_LABELS[0])
    two = _file_bytes(fewer, heads, labels=_LABELS[0])
    labelled = _file_bytes(more, heads[:1], labels=_LABELS[1])
    files: dict[str, dict[str, int]] = {}
    for encoding in ENCODINGS:
        per_head = (two[encoding] - one[encoding]) // max(len(heads) - 1, 1)
        per_label = labelled[encoding] - one[encoding]
        base = one[encoding] - per_head - _LABELS[0] * per_label
        files[encoding] = {"base": base, "per_head": per_head, "per_label": per_label}
    return files


def _file_bytes(placed: PlacedModel, heads: Sequence[HeadId], *, labels: int) -> Mapping[str, int]:
    """Return the file sizes of an untrained delta, with scores as long as real ones."""
    loaded = placed.loaded
    backbone = describe(loaded.model)
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(backbone.num_heads, backbone.num_heads, generator=draw, dtype=torch.float64)
    layer = LayerScores(
        values=scores[0],
        information_richness=scores[0],
        correlation=scores.clone().fill_diagonal_(0),
        importance=scores[0],
        iterations=20,
        selected=(),
    )
    selection = HeadSelection(
        heads=tuple(heads),
        num_layers=backbone.num_layers,
        layers=(layer,) * backbone.num_layers,
    )
    tuner = HeadTuner(
        loaded.model,
        selection,
        task_head=loaded.task_head_modules,
        fingerprint=placed.fingerprint,
    )
    delta = tuner.delta(labels=[f"label {n}" for n in range(labels)])
    tuner.undo()
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ENCODINGS:
            delta.save(Path(folder, encoding), encoding=encoding)
        return {encoding: Path(folder, encoding).stat().st_size for encoding in ENCODINGS}


def _load(kind: type[Task], source: ModelSource, *, num_labels: int) -> PlacedModel:
    config = load_config(source)
    config.num_labels = num_labels
    loaded = load_for_task(
        source, config=config, auto_class=kind.auto_class, attention="sdpa", seed=0
    )
    fingerprint = backbone_fingerprint(loaded.model)
    if backbone_dtype(loaded.model) == torch.float16:  # in which no tuner works
        cast_to(loaded.model, torch.bfloat16)
    return PlacedModel(loaded, fingerprint)


def _task_head_weights(loaded: LoadedModel) -> int:
    names = task_head_names(loaded.model, extra=loaded.task_head_modules)
    return sum(loaded.model.get_parameter(name).numel() for name in names)
