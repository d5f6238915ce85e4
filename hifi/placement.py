"""Where a head delta's tensors lie in a model: checked, read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.backbone import (
    Backbone,
    HeadId,
    Projection,
    describe,
    plain_projection,
    read_rows,
    task_head_names,
    write_rows,
)
from hifi.errors import BackboneMismatchError, InvalidArgumentError, TaskHeadMismatchError
from hifi.row_names import Shape, heads_of_rows, row_key, shapes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_matching_rows(
    model: PreTrainedModel, rows: Mapping[str, Tensor], *, architecture: str
) -> dict[str, Tensor]:
    """Copy out of a model the rows that ``rows`` would replace.

    Args:
        model: a transformers model whose projections are plain.
        rows: a head delta's rows; only their names and shapes count.
        architecture: the delta's; the model must be of it.

    Returns:
        The present rows under the same names, on the CPU, in the model's dtype.

    Raises:
        BackboneMismatchError: another architecture, heads that the model lacks, other shapes,
            biases on one side only.
        TunerError: a tuner, an adapter or a quantiser holds the projections.
        UnsupportedArchitectureError: the model's heads are not known.
    """
    backbone = describe(model)
    if backbone.architecture != architecture:
        raise BackboneMismatchError(
            f"the head delta is for {architecture!r}, the model is {backbone.architecture!r}"
        )
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
    _check_equal_shapes(present, rows)
    return present


def write_matching_rows(model: PreTrainedModel, rows: Mapping[str, Tensor]) -> None:
    """Copy rows into a model, in place.

    Args:
        model: one out of which ``read_matching_rows`` has read for these rows.
        rows: by row name, rounded to the model's dtype on the way.
    """
    for head, projection in _places(describe(model), heads_of_rows(rows)):
        weight = rows[row_key(head, projection.name, "weight")]
        bias = rows.get(row_key(head, projection.name, "bias"))
        write_rows(model, projection, head.head, weight=weight, bias=bias)


def read_matching_task_head(
    model: PreTrainedModel, task_head: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copy out of a model the task head that ``task_head`` would replace.

    Args:
        model: a transformers model.
        task_head: parameter name to tensor; only names and shapes count. Empty: the delta has no
            task head, and any model's is left alone.

    Returns:
        The present parameters under the same names, on the CPU, in their dtype.

    Raises:
        TaskHeadMismatchError: a parameter that the model lacks or has in another shape, or a task
            head of the model that the delta would replace only in part.
    """
    if not task_head:
        return {}
    parameters = dict(model.named_parameters())
    for name in _attention_names(model):
        parameters.pop(name, None)
    wanted = shapes_of(task_head)
    present = {name: parameters[name].detach() for name in wanted if name in parameters}
    found = shapes_of(present)
    found |= {name: tuple(parameters[name].shape) for name in task_head_names(model)}
    _check_same(wanted, found)
    return {name: tensor.clone().cpu() for name, tensor in present.items()}


def write_matching_task_head(model: PreTrainedModel, task_head: Mapping[str, Tensor]) -> None:
    """Copy a task head into a model, in place.

    Args:
        model: one out of which ``read_matching_task_head`` has read for this task head.
        task_head: parameter name to tensor, rounded to the model's dtype on the way.
    """
    with torch.no_grad():
        for name, tensor in task_head.items():
            model.get_parameter(name).data.copy_(tensor)


def _places(backbone: Backbone, heads: tuple[HeadId, ...]) -> Iterator[tuple[HeadId, Projection]]:
    for head in heads:
        for projection in backbone.layers[head.layer].projections:
            yield head, projection


def _attention_names(model: PreTrainedModel) -> Iterator[str]:
    """Name the parameters that hold heads' rows: a task head must not reach them."""
    for layer in describe(model).layers:
        for module_name in layer.module_names:
            for name, _ in model.get_submodule(module_name).named_parameters():
                yield f"{module_name}.{name}"


def _check_equal_shapes(present: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
    found, wanted = shapes_of(present), shapes_of(rows)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise BackboneMismatchError(
                f"{name} is {_show(wanted.get(name))} in the head delta and "
                f"{_show(found.get(name))} in the model"
            )


def _check_same(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise TaskHeadMismatchError(
                f"task head: {name} is {_show(wanted.get(name))} in the head delta and "
                f"{_show(found.get(name))} in the model; load the model with the task head that "
                "the delta was tuned with, or leave the task head out with task_head=False"
            )


def _show(shape: Shape | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
