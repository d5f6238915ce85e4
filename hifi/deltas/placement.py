"""Check, read and write the tensors of a model that a head delta replaces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.backbones.heads import (
    Backbone,
    HeadId,
    Projection,
    describe,
    optional_parameter_names,
    plain_projection,
    read_rows,
    task_head_names,
    write_rows,
)
from hifi.deltas.row_names import Shape, describe_difference, heads_of_rows, row_key, shapes_of
from hifi.errors import BackboneMismatchError, InvalidArgumentError, TaskHeadMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_matching_rows(model: PreTrainedModel, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the rows of a model that ``rows`` would replace.

    Args:
        model: a transformers model whose projections are plain.
        rows: a head delta's rows; only their names and shapes are used.

    Returns:
        The model's rows under the same names, on the CPU, in the model's dtype.

    Raises:
        BackboneMismatchError: heads that the model lacks, other shapes, or biases on one side only.
        TunerError: a tuner, an adapter or a quantiser wraps the projections.
        UnsupportedArchitectureError: the model's architecture is not supported.
    """
    backbone = describe(model)
    heads = heads_of_rows(rows)
    try:
        backbone.check_heads(heads)
    except InvalidArgumentError as error:
        raise BackboneMismatchError(f"the model lacks heads of the head delta: {error}") from error
    present: dict[str, Tensor] = {}
    for head, projection in _places(backbone, heads):
        plain_projection(model, projection)
        weight, bias = read_rows(model, projection, head.head)
        present[row_key(head, projection.name, "weight")] = weight.cpu()
        if bias is not None:
            present[row_key(head, projection.name, "bias")] = bias.cpu()
    if difference := describe_difference(shapes_of(rows), shapes_of(present)):
        raise BackboneMismatchError(difference)
    return present


def check_range(tensors: Mapping[str, Tensor], *, dtype: torch.dtype) -> None:
    """Raise if a finite value becomes infinite in a model's dtype.

    Args:
        tensors: a head delta's rows or task head, by name.
        dtype: of the model.

    Raises:
        BackboneMismatchError: the message has the tensor, its largest value and the limit.
    """
    most = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        found = float(tensor.abs().max()) if tensor.numel() else 0.0
        if most < found < math.inf:
            narrow = str(dtype).removeprefix("torch.")
            raise BackboneMismatchError(
                f"{name} of the head delta has values up to {found:g}, but the model is {narrow}, "
                f"whose largest number is {most:g}: load the backbone with dtype=torch.float32"
            )


def write_matching_rows(model: PreTrainedModel, rows: Mapping[str, Tensor]) -> None:
    """Copy rows into a model, in place.

    Args:
        model: a model that ``read_matching_rows`` has accepted for these rows.
        rows: by row name; rounded to the model's dtype.
    """
    for head, projection in _places(describe(model), heads_of_rows(rows)):
        weight = rows[row_key(head, projection.name, "weight")]
        bias = rows.get(row_key(head, projection.name, "bias"))
        write_rows(model, projection, head.head, weight=weight, bias=bias)


def read_matching_task_head(
    model: PreTrainedModel, task_head: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copy the parameters of a model that ``task_head`` would replace.

    Args:
        model: a transformers model.
        task_head: parameter name to tensor; only names and shapes are used. If it is empty, the
            delta has no task head, and the model's is left unchanged.

    Returns:
        The model's parameters under the same names, on the CPU, in their dtype.

    Raises:
        TaskHeadMismatchError: a parameter belongs to the backbone, is missing in the model or has
            another shape there, or the delta would replace only a part of the model's task head.
    """
    if not task_head:
        return {}
    parameters = dict(model.named_parameters())
    _check_outside_backbone(model, task_head)
    wanted = shapes_of(task_head)
    present = {name: parameters[name].detach() for name in wanted if name in parameters}
    found = shapes_of(present)
    found |= {name: tuple(parameters[name].shape) for name in task_head_names(model)}
    check_same(
        wanted,
        found,
        hint="load the model with the task head that the delta was tuned with, or leave the task "
        "head out with task_head=False",
    )
    return {name: tensor.clone().cpu() for name, tensor in present.items()}


def write_matching_task_head(model: PreTrainedModel, task_head: Mapping[str, Tensor]) -> None:
    """Copy a task head into a model, in place.

    Args:
        model: a model that ``read_matching_task_head`` has accepted for this task head.
        task_head: parameter name to tensor; rounded to the model's dtype.
    """
    with torch.no_grad():
        for name, tensor in task_head.items():
            model.get_parameter(name).data.copy_(tensor)


def _places(backbone: Backbone, heads: tuple[HeadId, ...]) -> Iterator[tuple[HeadId, Projection]]:
    for head in heads:
        for projection in backbone.layers[head.layer].projections:
            yield head, projection


def _check_outside_backbone(model: PreTrainedModel, task_head: Iterable[str]) -> None:
    """Raise if a task head would change the backbone, bypassing the checks of its rows.

    A task head may contain parameters outside the base model, and parameters that some classes of
    the base model lack (a pooler): those that a ``HeadTuner`` can train.
    """
    optional = set(optional_parameter_names(model))
    base = {id(parameter) for parameter in model.base_model.parameters()}
    # All names of tied parameters are checked: an output embedding may belong to the backbone.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in task_head and id(parameter) in base and name not in optional:
            raise TaskHeadMismatchError(
                f"task head: {name} is part of the model's backbone, where a head delta may "
                "replace only its heads' rows; leave the task head out with task_head=False"
            )


def check_same(wanted: Mapping[str, Shape], found: Mapping[str, Shape], *, hint: str) -> None:
    """Raise if a delta's task head and a model's differ in names or shapes.

    Args:
        wanted: name to shape in the head delta.
        found: name to shape in the model.
        hint: what the user can do, for the error.

    Raises:
        TaskHeadMismatchError: a parameter is missing on one side, or its shape differs.
    """
    if difference := describe_difference(wanted, found):
        raise TaskHeadMismatchError(f"task head: {difference}; {hint}")
