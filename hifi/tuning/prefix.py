"""The frozen prefix: compute the layers below the first tuned head once per sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from hifi.backbones.heads import describe
from hifi.backbones.outputs import OUTPUT_ARGUMENTS, no_cache
from hifi.backbones.passes import LayerPasses
from hifi.errors import InvalidArgumentError, TunerError
from hifi.tuning.states import StatePlaces, StateStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.tuning.tuner import HeadTuner

States = Mapping[Hashable, Tensor]  # by a sample's key: [S, D], on the CPU

_NOT_INPUTS = {*OUTPUT_ARGUMENTS, "past_key_values"}


class FrozenLayers:
    """The layers below a layer p that stay frozen: their states are kept, the others run.

    It serves before the heads are known, so it cannot check that nothing below p is trained:
    :func:`check_frozen` does. :class:`FrozenPrefix` is the same for a tuner, and says how states
    are computed.

    Args:
        model: on its device.
        first: p.
        places: where states are kept; by default some memory, then some disk.

    Attributes:
        model: as above.
        num_layers: p.
    """

    def __init__(
        self, model: PreTrainedModel, *, first: int, places: StatePlaces | None = None
    ) -> None:
        self.model, self.num_layers = model, first
        self._passes = LayerPasses(model)
        self._arguments = set(inspect.signature(model.forward).parameters)
        self._store = StateStore(places or StatePlaces())
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all states, and remove the temporary file; the prefix cannot be used any more."""
        self._is_closed = True
        self._store.close()

    def __call__(self, batch: Mapping[str, Any], *, keys: Sequence[Hashable]) -> Any:  # noqa: ANN401 - each model has an output class
        """Run the model on a batch, as ``model(**batch)`` does.

        Args:
            batch: arguments of ``model.forward``, on its device; texts are padded on the right.
            keys: identify the samples in all calls, such as their numbers in the data; of several
                splits, ``(split, number)``. No tensors: equal ones are different keys.

        Returns:
            The model's output. At padding, and in the hidden states and attention shares of layers
            below p, it is not that of the whole model.

        Raises:
            InvalidArgumentError: keys and samples do not match, a key is a tensor, there is no
                sample, or the batch has inputs that cannot be divided into samples.
            TunerError: the prefix is closed.
        """
        self._check_open()
        quiet = no_cache(self._arguments)
        if not self.num_layers:
            return self.model(**{**quiet, **batch})
        with self.running_from(self.states(batch, keys=keys)):
            return self.model(**{**quiet, **batch})

    def states(
        self,
        batch: Mapping[str, Any],
        *,
        keys: Sequence[Hashable],
        compute: Callable[[int], States] | None = None,
    ) -> Tensor:
        """Return the hidden states that enter layer p, ``[B, S, D]``, zero at padding.

        Args:
            batch: as for a call.
            keys: as for a call.
            compute: computes the states of the i-th sample of the batch, and maybe of others, with
                :meth:`fill`; by default from the sample alone.

        Raises:
            InvalidArgumentError, TunerError: as for a call.
        """
        inputs = self._divide(batch, keys=keys)
        fresh: dict[Hashable, Tensor] = {}
        found: list[Tensor] = []
        for index, key in enumerate(inputs.keys):
            states = fresh.get(key)
            states = self._store.get(key) if states is None else states
            if states is None:
                if compute is None:
                    fresh |= self._compute(inputs.sample(index))
                else:
                    fresh |= compute(index // inputs.choices)
                states = fresh[key]
            inputs.check_length(index, len(states), key=key)
            found.append(states)
        width = inputs.width or len(found[0])
        padded = found[0].new_zeros(len(found), width, found[0].shape[-1])
        for row, states in zip(padded, found, strict=True):
            row[: len(states)] = states
        return padded.to(self.model.device)

    def fill(self, batch: Mapping[str, Any], *, keys: Sequence[Hashable]) -> States:
        """Compute the states of a whole batch in one pass, and keep those for which there is room.

        It is faster than one sample at a time, on a GPU by far. The bits then depend on which
        samples are in the batch, so fill with the same batches in every run.

        Args:
            batch: as for a call.
            keys: as for a call.

        Returns:
            The states of each sample, ``[its tokens, D]``, on the CPU.

        Raises:
            InvalidArgumentError, TunerError: as for a call.
        """
        return self._compute(self._divide(batch, keys=keys))

    def running_from(self, states: Tensor) -> AbstractContextManager[None]:
        """Let the model start at layer p with these states, during a block.

        Args:
            states: ``[B, S, D]``, of the batch that the model is called with.
        """
        return self._passes.running_from(self.num_layers, states)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TunerError("the frozen prefix is closed and its states are gone: make a new one")

    def _divide(self, batch: Mapping[str, Any], *, keys: Sequence[Hashable]) -> _Inputs:
        self._check_open()
        return _Inputs.of(batch, names=self._passes.arguments, keys=keys)

    def _compute(self, inputs: _Inputs) -> States:
        hidden = self._run(inputs).cpu()
        found: dict[Hashable, Tensor] = {}
        for index, key in enumerate(inputs.keys):
            length = inputs.lengths[index] if inputs.lengths else hidden.shape[1]
            found[key] = hidden[index, :length].clone()
            self._store.put(key, found[key])
        return found

    def _run(self, inputs: _Inputs) -> Tensor:
        """Run the prefix in eval mode; return its last layer's output ``[B, S, D]``."""
        training = [module for module in self.model.base_model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            return self._passes.states_before(self.num_layers, inputs.values)
        finally:
            for module in training:
                module.training = True


class FrozenPrefix(FrozenLayers):
    """Run a tuned model from its first tuned layer on, with the hidden states below kept.

    Nothing below p, the first layer with a tuned head, is trained, so the hidden states that enter
    it are the same in every epoch. They are computed once per sample, without dropout and without
    gradients, and kept in memory, then in a temporary file; where there is no room they are
    computed again. The layers from p on run as usual. With a tuned head in layer 0 the whole model
    runs.

    A sample's states are computed from this sample alone, without padding, unless :meth:`fill`
    computed them. So they are the same bits whether they were kept or not, and no result depends on
    the places. They differ from those of the whole model, whose batches are padded, by rounding.
    Replicas of torch's DataParallel are not supported.

    Legend: B samples, S tokens of the longest of them (or patches), D hidden size.

    Args:
        tuner: of a model on its device; its task head and its heads may be the only trained
            parameters.
        places: where states are kept; by default some memory, then some disk.

    Attributes:
        model: the tuner's.
        num_layers: p.

    Raises:
        TunerError: the tuner is detached, or a parameter below layer p is trained.

    Example:
        >>> with FrozenPrefix(tuner) as prefix:
        ...     for batch in loader:  # has the number of each sample in the data as "row"
        ...         rows = batch.pop("row").tolist()
        ...         prefix(batch, keys=rows).loss.backward()
    """

    def __init__(self, tuner: HeadTuner, *, places: StatePlaces | None = None) -> None:
        tuner.parameters()  # raises if it is detached
        first = tuner.selection.heads[0].layer
        if first:
            check_frozen(tuner.model, first=first)
        super().__init__(tuner.model, first=first, places=places)


def check_frozen(model: PreTrainedModel, *, first: int) -> None:
    """Check that nothing is trained below a layer.

    Base models list their parameters in order, except for those that all layers read.

    Args:
        model: with its tuner.
        first: the layer.

    Raises:
        TunerError: something is.
    """
    backbone = describe(model)
    layer = model.get_submodule(backbone.layers[first].name)
    above = {id(parameter) for parameter in layer.parameters()}
    shared = {
        id(parameter)
        for name in backbone.shared
        for parameter in model.get_submodule(name).parameters()
    }
    is_below = True
    for name, parameter in model.base_model.named_parameters():
        is_below = is_below and id(parameter) not in above
        if parameter.requires_grad and (is_below or id(parameter) in shared):
            raise TunerError(f"{name} is trained, below the first tuned head: nothing is frozen")


class _Inputs:
    """The inputs of a base model, and how they are divided into samples.

    Attributes:
        values: arguments of the base model, ``[B, …]``; of choices ``[B·C, …]``.
        keys: of each sample; of choices, with their place in the sample.
        choices: C; 1 if samples have no choices.
        width: S; None for images, whose number of patches the model knows.
        lengths: real tokens of each sample; empty for images.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        keys: Sequence[Hashable],
        choices: int,
        width: int | None,
        lengths: list[int],
    ) -> None:
        self.values = values
        self.keys = keys
        self.choices = choices
        self.width = width
        self.lengths = lengths
        self._samples = len(keys)

    @classmethod
    def of(
        cls, batch: Mapping[str, Any], *, names: frozenset[str], keys: Sequence[Hashable]
    ) -> _Inputs:
        """Pick the base model's inputs in a batch, and check them.

        Raises:
            InvalidArgumentError: as for a call of the prefix.
        """
        if _has_tensor(keys) or any(map(_has_tensor, keys)):
            limit = "integers or texts, as tensor.tolist() returns them"
            raise InvalidArgumentError("keys", value="a tensor", limit=limit)
        values = {
            name: value
            for name, value in batch.items()
            if name in names - _NOT_INPUTS and value is not None
        }
        values, choices = _flatten_choices(values)
        if choices > 1:
            keys = [(key, choice) for key in keys for choice in range(choices)]
        if "pixel_values" in values:
            samples, width = len(values["pixel_values"]), None
        else:
            samples, width = _find_tokens(values)
        if 0 in (samples, width):
            value = f"{samples} samples" if width is None else f"[{samples}, {width}] tokens"
            limit = "at least one sample with at least one token"
            raise InvalidArgumentError("batch", value=value, limit=limit)
        if len(keys) != samples:
            limit = f"one for each of the {samples // choices} samples in the batch"
            raise InvalidArgumentError("keys", value=f"{len(keys) // choices} keys", limit=limit)
        lengths = [] if width is None else _count_tokens(values, samples=samples, width=width)
        return cls(values, keys=keys, choices=choices, width=width, lengths=lengths)

    def sample(self, index: int) -> _Inputs:
        """Return one sample without its padding."""
        width = self.lengths[index] if self.lengths else None
        values = {
            name: self._slice(name, value, index=index) if isinstance(value, Tensor) else value
            for name, value in self.values.items()
        }
        lengths = [] if width is None else [width]
        keys = [self.keys[index]]
        return _Inputs(values, keys=keys, choices=1, width=width, lengths=lengths)

    def _slice(self, name: str, value: Tensor, *, index: int) -> Tensor:
        """Copy a sample's part: the place of a view in memory could change the bits."""
        whole, length = value.shape[:2], self.lengths[index] if self.lengths else None
        if self.width is not None and whole == (self._samples, self.width):
            return value[index : index + 1, :length].clone()
        if self.width is not None and whole == (1, self.width):  # of all samples
            return value[:, :length].clone()
        if whole[:1] == (self._samples,):
            return value[index : index + 1].clone()
        limit = "one entry for each sample, or for each of its tokens"
        raise InvalidArgumentError(name, value=tuple(value.shape), limit=limit)

    def check_length(self, index: int, found: int, *, key: Hashable) -> None:
        """Raise if a sample's states are of another sample."""
        if self.lengths and found != self.lengths[index]:
            raise InvalidArgumentError(
                "keys",
                value=key,
                limit=f"a key for each sample: one of {found} tokens had this key before, "
                f"this one has {self.lengths[index]}",
            )


def _has_tensor(key: object) -> bool:
    """Return whether a key is a tensor or holds one: they are hashed by identity."""
    return isinstance(key, Tensor) or (isinstance(key, tuple) and any(map(_has_tensor, key)))


def _flatten_choices(values: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return inputs ``[B, C, …]`` as ``[B·C, …]``, and C; others as they are, and 1."""
    tokens, rank = (
        (values["input_ids"], 3) if "input_ids" in values else (values.get("inputs_embeds"), 4)
    )
    if not isinstance(tokens, Tensor) or tokens.ndim != rank:
        return dict(values), 1
    whole = tokens.shape[:2]
    flat = {
        name: value.flatten(0, 1)
        if isinstance(value, Tensor) and value.shape[:2] == whole
        else value
        for name, value in values.items()
    }
    return flat, int(whole[1])


def _find_tokens(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return B and S of texts."""
    name = "input_ids" if "input_ids" in values else "inputs_embeds"
    tokens = values.get(name)
    rank = 2 if name == "input_ids" else 3
    if not isinstance(tokens, Tensor) or tokens.ndim != rank:
        value = tuple(tokens.shape) if isinstance(tokens, Tensor) else None
        limit = "input_ids [B, S], inputs_embeds [B, S, D], or pixel_values"
        raise InvalidArgumentError("batch", value=value, limit=limit)
    return tokens.shape[0], tokens.shape[1]


def _count_tokens(values: Mapping[str, Any], *, samples: int, width: int) -> list[int]:
    """Return the number of real tokens of each sample."""
    mask = values.get("attention_mask")
    if mask is None:
        return [width] * samples
    lengths = cast("Tensor", mask != 0).sum(-1)
    places = torch.arange(width, device=mask.device)
    if mask.shape != (samples, width) or not torch.equal(mask != 0, places < lengths[:, None]):
        limit = f"[{samples}, {width}] with padding on the right alone"
        raise InvalidArgumentError("attention_mask", value=tuple(mask.shape), limit=limit)
    return [int(length) for length in lengths.tolist()]
