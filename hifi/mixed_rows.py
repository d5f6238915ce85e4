"""Rows of many tasks in one pass: the backbone's for all samples, and each task's own in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.backbone import AttentionLayer, HeadId, describe, plain_projection
from hifi.row_names import heads_of_rows, row_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Place:
    """Where one module's part of a layer's product goes.

    Attributes:
        part: of the product's columns.
        size: columns of one head in the module, r.
        heads: which of the module's blocks of r columns they are.
        bias: ``[h, r]``; None where the backbone has none.
    """

    part: slice
    size: int
    heads: tuple[int, ...]
    bias: Tensor | None


@dataclass(frozen=True)
class _LayerRows:
    """One task's rows of one layer, of query, key and value beside each other.

    Attributes:
        weight: W'ᵀ, ``[D, c]``, contiguous.
        places: by module.
    """

    weight: Tensor
    places: Mapping[str, _Place]


@dataclass(frozen=True)
class TaskRows:
    """One task's rows, laid out for a model.

    Attributes:
        layers: by layer index; a layer without rows is missing.
        shape: equal for tasks whose rows can be stacked: columns by layer.
    """

    layers: Mapping[int, _LayerRows]
    shape: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor], *, model: PreTrainedModel) -> TaskRows:
        """Lay rows out.

        Args:
            rows: W' by row name, which fit the model.
            model: gives dtype, device and the places.
        """
        chosen: dict[int, list[HeadId]] = {}
        for head in heads_of_rows(rows):
            chosen.setdefault(head.layer, []).append(head)
        described = describe(model).layers
        layers = {
            index: _lay_out(rows, heads, layer=described[index], model=model)
            for index, heads in chosen.items()
        }
        shape = tuple((index, layer.weight.shape[1]) for index, layer in sorted(layers.items()))
        return cls(layers, shape)

    @property
    def bytes(self) -> int:
        """Count the bytes that they take."""
        biases = [p.bias for layer in self.layers.values() for p in layer.places.values()]
        weights = [layer.weight for layer in self.layers.values()]
        return sum(tensor.nbytes for tensor in (*weights, *biases) if tensor is not None)


def _lay_out(
    rows: Mapping[str, Tensor],
    heads: Sequence[HeadId],
    *,
    layer: AttentionLayer,
    model: PreTrainedModel,
) -> _LayerRows:
    weights: list[Tensor] = []
    places: dict[str, _Place] = {}
    start = 0
    for module_name in layer.module_names:
        mine = [p for p in layer.projections if p.module_name == module_name]
        size = mine[0].rows_per_head  # alike in a fused module: its keys are never grouped
        blocks = []
        biases: list[Tensor] = []
        for projection in mine:
            for head in heads:
                blocks.append(projection.rows(head.head).start // size)
                weights.append(rows[row_key(head, projection.name, "weight")])
                bias = rows.get(row_key(head, projection.name, "bias"))
                biases += [] if bias is None else [bias]
        stop = start + size * len(blocks)
        bias = torch.stack(biases).to(model.device, model.dtype) if biases else None
        places[module_name] = _Place(slice(start, stop), size, tuple(blocks), bias)
        start = stop
    weight = torch.cat(weights).T.to(model.device, model.dtype).contiguous()
    return _LayerRows(weight, places)


@dataclass(frozen=True)
class Block:
    """Neighbouring samples of a batch whose tasks' rows are multiplied in one product.

    Attributes:
        samples: their places.
        rows: of the one task of all of them, or of each sample's task; then all are of one shape.
    """

    samples: slice
    rows: Sequence[TaskRows]


class MixedRows:
    """Lets a model project the samples of each task with the task's own rows.

    The projections stay as they are, and so does the model outside :meth:`mixing`; a hook on each
    overwrites the tasks' columns of what it gives. A layer's query, key and value are one product,
    since they read the same input.

    Args:
        model: a bare transformers model whose projections are plain.

    Raises:
        TunerError: a tuner, an adapter or a quantiser holds a projection.
        UnsupportedArchitectureError: the model's heads are not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = describe(model).layers
        for layer in layers:
            for projection in layer.projections:
                plain_projection(model, projection)  # refuse before any hook is set
        self._layers = [_MixedLayer(layer) for layer in layers]
        self._hooks = [
            model.get_submodule(name).register_forward_hook(mixed.hook(name))
            for mixed in self._layers
            for name in mixed.module_names
        ]

    @contextmanager
    def mixing(self, blocks: Sequence[Block]) -> Iterator[None]:
        """Mix the rows of tasks for the time of a block of code.

        Args:
            blocks: of a batch; samples in none of them are the bare backbone's.
        """
        for layer in self._layers:
            layer.blocks = blocks
        try:
            yield
        finally:
            for layer in self._layers:
                layer.blocks = ()
                layer.forget()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


class _MixedLayer:
    """One layer's modules, of which the first one called computes the tasks' products for all."""

    def __init__(self, layer: AttentionLayer) -> None:
        self.module_names = layer.module_names
        self.blocks: Sequence[Block] = ()
        self._index = layer.index
        self._inputs: Tensor | None = None
        self._products: list[tuple[Block, Tensor]] = []

    def hook(self, name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], None]:
        """Make the forward hook of a module."""

        def overwrite(_module: object, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if not self.blocks:
                return
            for block, product in self._multiply(arguments[0]):
                self._place(name, block, product=product, output=output[block.samples])
            if name == self.module_names[-1]:
                self.forget()

        return overwrite

    def _multiply(self, inputs: Tensor) -> list[tuple[Block, Tensor]]:
        if inputs is not self._inputs:
            self._inputs = inputs
            self._products = [
                (block, self._project(block, inputs[block.samples]))
                for block in self.blocks
                if self._index in block.rows[0].layers
            ]
        return self._products

    def _project(self, block: Block, inputs: Tensor) -> Tensor:
        """Project ``[n, S, D]`` to ``[n, S, c]``."""
        layers = [rows.layers[self._index] for rows in block.rows]
        if len(layers) == 1:
            flat = inputs.flatten(0, 1) @ layers[0].weight
            return flat.view(*inputs.shape[:2], -1)
        return torch.bmm(inputs, torch.stack([layer.weight for layer in layers]))

    def _place(self, name: str, block: Block, *, product: Tensor, output: Tensor) -> None:
        """Put the columns of one module, and their bias, where its output ``[n, S, R]`` has them.

        Head by head: an index would be read for every element.
        """
        places = [rows.layers[self._index].places[name] for rows in block.rows]
        part, size = places[0].part, places[0].size
        by_head = output.unflatten(-1, (-1, size))  # [n, S, H, r]
        mine = product[..., part].unflatten(-1, (-1, size))  # [n, S, h, r]
        if len(places) == 1:
            _copy(places[0], mine, to=by_head)
            return
        for place, target, source in zip(places, by_head, mine, strict=True):
            _copy(place, source, to=target)

    def forget(self) -> None:
        """Let go of the last batch."""
        self._inputs, self._products = None, []


def _copy(place: _Place, source: Tensor, *, to: Tensor) -> None:
    """Copy ``[…, h, r]`` into the heads of ``[…, H, r]`` that the place names; add the bias."""
    for number, head in enumerate(place.heads):
        target = to.select(-2, head)
        if place.bias is None:
            target.copy_(source.select(-2, number))
        else:
            torch.add(source.select(-2, number), place.bias[number], out=target)
