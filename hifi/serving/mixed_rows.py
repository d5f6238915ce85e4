"""Apply many tasks' rows in one pass: backbone rows for all samples, then each task's own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hifi.backbones.heads import AttentionLayer, HeadId, ProjectionName, describe, plain_projection
from hifi.deltas.row_names import Shape, heads_of_rows, row_key
from hifi.serving.mixed_positions import SamplePositions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.serving.slots import Slot
    from hifi.serving.task_logits import TaskLogits

TASK_HEAD = "task_head."  # prefix of its parts' names; the names of row parts begin differently


@dataclass(frozen=True)
class _Place:
    """The place of one module's columns in a layer's product.

    Attributes:
        columns: the module's columns in the product.
        size: columns of one head in the module, r.
        span: the part of :attr:`RowPlaces.heads` with the module's blocks of r columns.
    """

    columns: slice
    size: int
    span: slice


@dataclass(frozen=True)
class _Columns:
    """One layer's rows as columns: query, key and value side by side.

    Attributes:
        owners: head and projection of each block of r columns, in order.
        places: one per module.
        weight: shape of W'ᵀ, ``[D, c]``.
        has_bias: whether any projection has a bias.
    """

    owners: tuple[tuple[HeadId, ProjectionName], ...]
    places: Mapping[str, _Place]
    weight: Shape
    has_bias: bool


@dataclass(frozen=True)
class RowPlaces:
    """The places of one task's rows in a model: everything about the rows except their values.

    Attributes:
        layers: by layer index; a layer without rows is missing.
        heads: for every place, in the order of layers and modules, the indices of its blocks of r
            columns in the module.
    """

    layers: Mapping[int, _Columns]
    heads: tuple[int, ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor], *, model: PreTrainedModel) -> RowPlaces:
        """Find the places of rows.

        Args:
            rows: W' by row name; they must fit the model.
            model: the bare backbone.
        """
        described = describe(model).layers
        numbers: list[int] = []
        layers: dict[int, _Columns] = {}
        for index, heads in groupby(heads_of_rows(rows), key=lambda head: head.layer):
            layers[index] = _columns(rows, list(heads), layer=described[index], numbers=numbers)
        return cls(layers, tuple(numbers))

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """The columns by layer; equal for tasks whose rows can be stacked."""
        return tuple((index, columns.weight[1]) for index, columns in self.layers.items())

    @property
    def parts(self) -> dict[str, Shape]:
        """Return names and shapes of the tensors that hold the rows' values.

        They are each layer's W'ᵀ ``[D, c]``, and its bias ``[c]`` if the backbone has one.
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
    """Lay out one layer's rows, and append the indices of their blocks to ``numbers``."""
    owners: list[tuple[HeadId, ProjectionName]] = []
    places: dict[str, _Place] = {}
    start = 0
    for module_name in layer.module_names:
        mine = [p for p in layer.projections if p.module_name == module_name]
        size = mine[0].rows_per_head  # equal within a fused module, whose keys are never grouped
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


@dataclass(frozen=True, eq=False)
class BankedTask:
    """A head delta in the bank.

    Attributes:
        slot: holds the values of its rows, by the names in ``places.parts``, and its task head.
        places: where the rows go in the model.
        head: computes logits from a hidden state; None without a task head.
    """

    slot: Slot
    places: RowPlaces
    head: TaskLogits | None

    @cached_property
    def head_weights(self) -> dict[str, Tensor]:
        """The task head's parameters, in the slot."""
        return {
            name.removeprefix(TASK_HEAD): part
            for name, part in self.slot.parts.items()
            if name.startswith(TASK_HEAD)
        }

    @cached_property
    def widest(self) -> int:
        """The bytes of the largest layer's weight."""
        return max((self.weight(layer).nbytes for layer in self.places.layers), default=0)

    def weight(self, layer: int) -> Tensor:
        """Return W'ᵀ of a layer, ``[D, c]``."""
        return self.slot.parts[_part(layer, "weight")]

    def bias(self, layer: int) -> Tensor | None:
        """Return the bias of a layer, ``[c]``."""
        return self.slot.parts.get(_part(layer, "bias"))


@dataclass(frozen=True)
class Block:
    """Contiguous samples of a batch whose tasks' rows are multiplied in one product.

    Attributes:
        samples: their positions.
        tasks: the one task of all samples, or each sample's task; their rows have one shape.
    """

    samples: slice
    tasks: Sequence[BankedTask]

    def project(self, layer: int, inputs: Tensor, *, columns: int | None = None) -> Tensor:
        """Project the samples' inputs to a layer with their rows.

        Many tasks' weights are stacked first, with one kernel on a GPU; the size of blocks limits
        the memory for this.

        Args:
            layer: its index.
            inputs: ``[n, S, D]``; ``[1, S, D]`` if they are the same for all samples.
            columns: c, to compute the first ones only.

        Returns:
            ``[n, S, c]``; ``[1, S, c]`` for the same inputs and one task.
        """
        if len(self.tasks) == 1:
            weight, bias = self.tasks[0].weight(layer)[:, :columns], self.tasks[0].bias(layer)
            flat = inputs.flatten(0, 1)
            product = flat @ weight if bias is None else torch.addmm(bias[:columns], flat, weight)
            return product.view(*inputs.shape[:2], -1)
        weights = torch.stack([task.weight(layer)[:, :columns] for task in self.tasks])  # [n, D, c]
        biases = [bias[:columns] for task in self.tasks if (bias := task.bias(layer)) is not None]
        inputs = inputs.expand(len(weights), -1, -1)
        if not biases:
            return torch.bmm(inputs, weights)
        return torch.baddbmm(torch.stack(biases).unsqueeze(1), inputs, weights)


class Placing(Protocol):
    """A way to copy a product into a module's output."""

    def __call__(self, product: Tensor, *, output: Tensor, heads: Tensor) -> None:
        """Copy into some heads of an output.

        Args:
            product: ``[n, S, h, r]``.
            output: ``[n, S, H, r]``.
            heads: the index in H of each h, int64, ``[n, h]``, or ``[1, h]`` if equal for all n.
        """


def place_by_slices(product: Tensor, *, output: Tensor, heads: Tensor) -> None:
    """Implement :class:`Placing` head by head: with an index, a CPU reads it for every element."""
    if len(heads) == 1:
        product, output = product[None], output[None]
    for numbers, source, target in zip(heads.tolist(), product, output, strict=True):
        for position, head in enumerate(numbers):
            target.select(-2, head).copy_(source.select(-2, position))


def place_by_index(product: Tensor, *, output: Tensor, heads: Tensor) -> None:
    """Implement :class:`Placing` in one kernel: on a GPU all heads take no longer than one."""
    output.scatter_(2, heads[:, None, :, None].expand_as(product), product)


def placing_on(device: torch.device) -> Placing:
    """Return the faster placing on a device."""
    return place_by_slices if device.type == "cpu" else place_by_index


def _heads_of(blocks: Sequence[Block], device: torch.device) -> list[Tensor]:
    """Copy the heads of all blocks to a device at once, each ``[n or 1, all places' h]``."""
    numbers = [[task.places.heads for task in block.tasks] for block in blocks]
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
    """Makes a model project the samples of each task with the task's own rows.

    The projections are not replaced, and the model is unchanged outside :meth:`mixing`: a hook on
    each projection overwrites the tasks' columns of its output. A layer's query, key and value are
    one product, since they have the same input. Relative positions that a layer projects with the
    same rows are projected for each sample, with its task's rows.

    Args:
        model: a bare transformers model whose projections are plain.

    Raises:
        TunerError: a tuner, an adapter or a quantiser wraps a projection.
        UnsupportedArchitectureError: the model's architecture is not supported.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = describe(model).layers
        for layer in layers:
            for projection in layer.projections:
                plain_projection(model, projection)  # raise before any hook is set
        self._device = model.device
        placing = placing_on(model.device)
        self._layers = [_MixedLayer(layer, placing, model=model) for layer in layers]
        self._hooks = [
            model.get_submodule(name).register_forward_hook(mixed.hook(name))
            for mixed in self._layers
            for name in mixed.module_names
        ]

    @contextmanager
    def mixing(self, blocks: Sequence[Block]) -> Iterator[None]:
        """Apply the tasks' rows during a block of code.

        Args:
            blocks: of a batch; samples outside all blocks use the bare backbone.
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
    """One layer's modules; the first one called computes the tasks' products for all of them."""

    def __init__(self, layer: AttentionLayer, placing: Placing, *, model: PreTrainedModel) -> None:
        self.module_names = layer.module_names
        self._index = layer.index
        self._place = placing
        self._blocks: list[tuple[Block, Tensor]] = []
        self._inputs: Tensor | None = None
        self._products: list[Tensor] = []
        self._positions: SamplePositions | None = None
        if layer.positions is not None:
            self._positions = SamplePositions(model, layer.positions, on_end=self._forget)

    def start(self, blocks: Sequence[Block], heads: Sequence[Tensor]) -> None:
        """Start applying a batch's rows; ``heads`` are those of its blocks, on the device."""
        self._blocks = [
            (block, numbers)
            for block, numbers in zip(blocks, heads, strict=True)
            if self._index in block.tasks[0].places.layers
        ]
        if self._blocks and self._positions is not None:
            self._positions.start()

    def stop(self) -> None:
        """Stop applying rows, and release the batch."""
        self._blocks = []
        self._forget()
        if self._positions is not None:
            self._positions.stop()

    def hook(self, name: str) -> Callable[[object, tuple[Tensor, ...], Tensor], Tensor | None]:
        """Return the forward hook for a module."""

        def overwrite(
            _module: object, arguments: tuple[Tensor, ...], output: Tensor
        ) -> Tensor | None:
            if not self._blocks:
                return None
            inputs, positions = arguments[0], self._positions
            if positions is not None and positions.samples:
                own = positions.widen(output)
                self._overwrite(name, inputs, own, are_positions=True)
                return positions.side_by_side(own)
            self._overwrite(name, inputs, output, are_positions=False)
            if name == self.module_names[-1]:
                self._forget()
            return None

        return overwrite

    def _overwrite(self, name: str, inputs: Tensor, output: Tensor, *, are_positions: bool) -> None:
        """Overwrite the tasks' columns of a module's output ``[B, S, R]``.

        Args:
            name: of the module.
            inputs: ``[B, S, D]``; of relative positions ``[1, S, D]``, the same for all samples.
            output: changed in place.
            are_positions: whether the inputs are relative positions.
        """
        if inputs is not self._inputs:
            self._inputs = inputs
            self._products = [
                block.project(self._index, inputs, columns=self._value_start(block))
                if are_positions
                else block.project(self._index, inputs[block.samples])
                for block, _ in self._blocks
            ]
        for (block, heads), product in zip(self._blocks, self._products, strict=True):
            place = block.tasks[0].places.layers[self._index].places[name]
            own = output[block.samples].unflatten(-1, (-1, place.size))
            columns = product[..., place.columns].unflatten(-1, (-1, place.size))
            columns = columns.expand(len(own), -1, -1, -1)
            self._place(columns, output=own, heads=heads[:, place.span])

    def _value_start(self, block: Block) -> int:
        """Return the number of columns of query and key, which alone project positions."""
        places = block.tasks[0].places.layers[self._index].places
        return int(places[self.module_names[-1]].columns.start)

    def _forget(self) -> None:
        self._inputs, self._products = None, []
