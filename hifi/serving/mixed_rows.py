"""Rows of many tasks in one pass: the backbone's for all samples, and each task's own in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hifi.backbones.heads import AttentionLayer, HeadId, ProjectionName, describe, plain_projection
from hifi.deltas.row_names import Shape, heads_of_rows, row_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Place:
    """Where one module's part of a layer's product goes.

    Attributes:
        columns: the part, of the product's columns.
        size: columns of one head in the module, r.
        span: where :attr:`RowPlaces.heads` says which of the module's blocks of r they are.
    """

    columns: slice
    size: int
    span: slice


@dataclass(frozen=True)
class _Columns:
    """One layer's rows as columns, of query, key and value beside each other.

    Attributes:
        owners: head and projection of each r of them, in order.
        places: by module.
        weight: shape of W'ᵀ, ``[D, c]``.
        has_bias: whether any of the projections has one.
    """

    owners: tuple[tuple[HeadId, ProjectionName], ...]
    places: Mapping[str, _Place]
    weight: Shape
    has_bias: bool


@dataclass(frozen=True)
class RowPlaces:
    """Where one task's rows go in a model: all that there is to know but their values.

    Attributes:
        layers: by layer index; a layer without rows is missing.
        heads: of every place, in the order of layers and modules, which of its module's blocks of
            r columns each is.
    """

    layers: Mapping[int, _Columns]
    heads: tuple[int, ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor], *, model: PreTrainedModel) -> RowPlaces:
        """Find the places of rows.

        Args:
            rows: W' by row name, which fit the model.
            model: the bare backbone.
        """
        chosen: dict[int, list[HeadId]] = {}
        for head in heads_of_rows(rows):
            chosen.setdefault(head.layer, []).append(head)
        described = describe(model).layers
        layers: dict[int, _Columns] = {}
        numbers: list[int] = []
        for index, heads in chosen.items():
            layers[index] = _columns(rows, heads, layer=described[index], numbers=numbers)
        return cls(layers, tuple(numbers))

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """Give the columns by layer, equal for tasks whose rows can be stacked."""
        return tuple((index, columns.weight[1]) for index, columns in self.layers.items())

    @property
    def parts(self) -> dict[str, Shape]:
        """Name the tensors that hold the rows' values, and give their shapes.

        They are each layer's W'ᵀ ``[D, c]``, and its bias ``[c]`` where the backbone has one.
        """
        parts: dict[str, Shape] = {}
        for index, columns in self.layers.items():
            parts[_part(index, "weight")] = columns.weight
            if columns.has_bias:
                parts[_part(index, "bias")] = columns.weight[1:]
        return parts

    def write(self, rows: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
        """Copy rows into the tensors that :attr:`parts` describes, cast to their dtype."""
        for index, columns in self.layers.items():
            weights = [rows[row_key(*owner, "weight")] for owner in columns.owners]
            parts[_part(index, "weight")].copy_(torch.cat(weights).T)
            if columns.has_bias:
                biases = [
                    rows.get(row_key(*owner, "bias"), weight.new_zeros(len(weight)))
                    for owner, weight in zip(columns.owners, weights, strict=True)
                ]
                parts[_part(index, "bias")].copy_(torch.cat(biases))


def _part(layer: int, kind: str) -> str:
    return f"layers.{layer}.{kind}"


def _columns(
    rows: Mapping[str, Tensor],
    heads: Sequence[HeadId],
    *,
    layer: AttentionLayer,
    numbers: list[int],
) -> _Columns:
    """Lay one layer's rows out; adds to ``numbers`` which blocks of its modules they are."""
    owners: list[tuple[HeadId, ProjectionName]] = []
    places: dict[str, _Place] = {}
    start = 0
    for module_name in layer.module_names:
        mine = [p for p in layer.projections if p.module_name == module_name]
        size = mine[0].rows_per_head  # alike in a fused module: its keys are never grouped
        span = slice(len(numbers), len(numbers) + len(mine) * len(heads))
        stop = start + size * len(mine) * len(heads)
        for projection in mine:
            owners += [(head, projection.name) for head in heads]
            numbers += [projection.rows(head.head).start // size for head in heads]
        places[module_name] = _Place(slice(start, stop), size, span)
        start = stop
    width = rows[row_key(*owners[0], "weight")].shape[1]
    has_bias = any(row_key(*owner, "bias") in rows for owner in owners)
    return _Columns(tuple(owners), places, (width, start), has_bias)


@dataclass(frozen=True)
class TaskRows:
    """One task's rows, on the model's device.

    Attributes:
        places: where they go.
        parts: their values, by the names that ``places`` gives.
    """

    places: RowPlaces
    parts: Mapping[str, Tensor]

    @cached_property
    def widest(self) -> int:
        """Count the bytes of the weight of the layer that has most."""
        return max((self.weight(layer).nbytes for layer in self.places.layers), default=0)

    def weight(self, layer: int) -> Tensor:
        """Give W'ᵀ of a layer, ``[D, c]``."""
        return self.parts[_part(layer, "weight")]

    def bias(self, layer: int) -> Tensor | None:
        """Give the bias of a layer, ``[c]``."""
        return self.parts.get(_part(layer, "bias"))


@dataclass(frozen=True)
class Block:
    """Neighbouring samples of a batch whose tasks' rows are multiplied in one product.

    Attributes:
        samples: their places.
        rows: of the one task of all of them, or of each sample's task; then all are of one shape.
    """

    samples: slice
    rows: Sequence[TaskRows]

    def project(self, layer: int, inputs: Tensor) -> Tensor:
        """Project the samples' inputs to a layer ``[n, S, D]`` with their rows, to ``[n, S, c]``.

        Many tasks' weights are copied beside each other first, which is one kernel on a GPU:
        blocks are made so that this is not too much.
        """
        if len(self.rows) == 1:
            weight, bias = self.rows[0].weight(layer), self.rows[0].bias(layer)
            flat = inputs.flatten(0, 1)
            product = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
            return product.view(*inputs.shape[:2], -1)
        weights = torch.stack([rows.weight(layer) for rows in self.rows])  # [n, D, c]
        biases = [bias for rows in self.rows if (bias := rows.bias(layer)) is not None]
        if not biases:
            return torch.bmm(inputs, weights)
        return torch.baddbmm(torch.stack(biases).unsqueeze(1), inputs, weights)


class Placing(Protocol):
    """A way to put a product where a module's output has it."""

    def __call__(self, product: Tensor, *, output: Tensor, heads: Tensor) -> None:
        """Copy into some heads of an output.

        Args:
            product: ``[n, S, h, r]``.
            output: ``[n, S, H, r]``.
            heads: which of H each h is, int64, ``[n, h]``, or ``[1, h]`` where all n agree.
        """


def place_by_slices(product: Tensor, *, output: Tensor, heads: Tensor) -> None:
    """Copy as :class:`Placing` says, head by head: a CPU would read an index for every element."""
    if len(heads) == 1:
        product, output = product[None], output[None]
    for numbers, source, target in zip(heads.tolist(), product, output, strict=True):
        for position, head in enumerate(numbers):
            target.select(-2, head).copy_(source.select(-2, position))


def place_by_index(product: Tensor, *, output: Tensor, heads: Tensor) -> None:
    """Copy as :class:`Placing` says, in one kernel: a GPU takes no longer for all than for one."""
    output.scatter_(2, heads[:, None, :, None].expand_as(product), product)


def placing_on(device: torch.device) -> Placing:
    """Choose what is fast on a device."""
    return place_by_slices if device.type == "cpu" else place_by_index


def _heads_of(blocks: Sequence[Block], device: torch.device) -> list[Tensor]:
    """Bring the heads of all blocks to a device together, each ``[n or 1, all places' h]``."""
    numbers = [[rows.places.heads for rows in block.rows] for block in blocks]
    flat = torch.tensor(
        [head for block in numbers for heads in block for head in heads],
        dtype=torch.int64,
        pin_memory=device.type == "cuda",
    ).to(device, non_blocking=True)
    parts = flat.split([len(block) * len(block[0]) for block in numbers])
    return [
        part.view(len(block), len(block[0])) for block, part in zip(numbers, parts, strict=True)
    ]


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
        self._device = model.device
        placing = placing_on(model.device)
        self._layers = [_MixedLayer(layer, placing) for layer in layers]
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
        if not blocks:
            yield
            return
        heads = _heads_of(blocks, self._device)
        for layer in self._layers:
            layer.start(blocks, heads)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.stop()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


class _MixedLayer:
    """One layer's modules, of which the first one called computes the tasks' products for all."""

    def __init__(self, layer: AttentionLayer, placing: Placing) -> None:
        self.module_names = layer.module_names
        self._index = layer.index
        self._place = placing
        self._blocks: list[tuple[Block, Tensor]] = []
        self._inputs: Tensor | None = None
        self._products: list[Tensor] = []

    def start(self, blocks: Sequence[Block], heads: Sequence[Tensor]) -> None:
        """Mix a batch's rows from now on; ``heads`` are those of its blocks, on the device."""
        self._blocks = [
            (block, numbers)
            for block, numbers in zip(blocks, heads, strict=True)
            if self._index in block.rows[0].places.layers
        ]

    def stop(self) -> None:
        """Let go of the batch, and mix no more."""
        self._blocks = []
        self._forget()

    def hook(self, name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], None]:
        """Make the forward hook of a module."""

        def overwrite(_module: object, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if not self._blocks:
                return
            products = self._multiply(arguments[0])
            for (block, heads), product in zip(self._blocks, products, strict=True):
                place = block.rows[0].places.layers[self._index].places[name]
                self._place(
                    product[..., place.columns].unflatten(-1, (-1, place.size)),
                    output=output[block.samples].unflatten(-1, (-1, place.size)),
                    heads=heads[:, place.span],
                )
            if name == self.module_names[-1]:
                self._forget()

        return overwrite

    def _multiply(self, inputs: Tensor) -> list[Tensor]:
        if inputs is not self._inputs:
            self._inputs = inputs
            self._products = [
                block.project(self._index, inputs[block.samples]) for block, _ in self._blocks
            ]
        return self._products

    def _forget(self) -> None:
        self._inputs, self._products = None, []
