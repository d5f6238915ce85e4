"""Describe a backbone, so that the gateway can plan jobs on it without loading it."""

from __future__ import annotations

from pathlib import Path

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import Backbone, describe, read_rows, task_head_names
from hifi.backbones.models import (
    AutoClass,
    LoadedModel,
    ModelSource,
    check_reads,
    identify_folder,
    load_config,
    load_for_task,
    max_positions,
)
from hifi.errors import ModelError
from hifi.tasks import Task, get_task, task_types
from store.workers import BackboneDescription

_MAX_LENGTH = 128
_LABELS = (2, 3)  # two numbers of labels show how a task head grows


def describe_backbone(identifier: str, path: Path) -> BackboneDescription:
    """Describe a backbone.

    Weights are counted as in ``hifi.finetune``: a job with n selected heads and m labels (one for
    regression) trains ``n · weights_per_head + base + m · per_label`` weights, out of
    ``parameters + base + m · per_label``.

    Args:
        identifier: its name in job specs.
        path: its folder.

    Returns:
        Its sizes, its fingerprint as stored, and ``base`` and ``per_label`` for every supported
        task type.

    Raises:
        ModelError: it cannot be loaded, or supports no task type.
        UnsupportedArchitectureError: its architecture is not supported.
    """
    source = identify_folder(path)
    load_config(source)  # so that a general fault is not reported for each task type
    heads: dict[AutoClass, tuple[LoadedModel, dict[str, int]]] = {}
    task_heads: dict[str, dict[str, int]] = {}
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
    loaded, _ = next(iter(heads.values()))
    return _describe(identifier, loaded, task_heads=task_heads)


def _describe(
    identifier: str, loaded: LoadedModel, *, task_heads: dict[str, dict[str, int]]
) -> BackboneDescription:
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
        fingerprint=backbone_fingerprint(model),
        max_positions=max_positions(model),
        weights_per_head=_weights_per_head(loaded, backbone),
        task_heads=task_heads,
    )


def _weights_per_head(loaded: LoadedModel, backbone: Backbone) -> int:
    """Count the weights in a head's rows of query, key and value; equal for all heads."""
    rows = [read_rows(loaded.model, part, 0) for part in backbone.layers[0].projections]
    return sum(w.numel() + (0 if bias is None else bias.numel()) for w, bias in rows)


def _check_encoder(kind: type[Task], source: ModelSource) -> None:
    """Check that the model reads such inputs, and has a tokenizer or image processor for them.

    Raises:
        ModelError: it does not.
    """
    config = load_config(source)
    check_reads(source, config, input_kind=kind.input_kind)
    task = kind(inputs=("input",), label="label", metric=kind.metrics[0])
    task.load_encoder(source, config, max_length=_MAX_LENGTH)


def _count_task_head(kind: type[Task], source: ModelSource) -> tuple[LoadedModel, dict[str, int]]:
    """Build the task's model for two numbers of labels, and count the task head's weights."""
    fewer, more = (_load(kind, source, num_labels=labels) for labels in _LABELS)
    weights = _task_head_weights(fewer)
    per_label = _task_head_weights(more) - weights
    return fewer, {"base": weights - _LABELS[0] * per_label, "per_label": per_label}


def _load(kind: type[Task], source: ModelSource, *, num_labels: int) -> LoadedModel:
    config = load_config(source)
    config.num_labels = num_labels
    return load_for_task(
        source, config=config, auto_class=kind.auto_class, attention="sdpa", seed=0
    )


def _task_head_weights(loaded: LoadedModel) -> int:
    names = task_head_names(loaded.model, extra=loaded.task_head_modules)
    return sum(loaded.model.get_parameter(name).numel() for name in names)
