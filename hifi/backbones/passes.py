"""Run a part of a model's layers: up to a layer, or from a layer on with given states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hifi.backbones.heads import describe
from hifi.backbones.outputs import RECORD_NOTHING, no_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _StatesSeenError(Exception):
    """Ends a forward pass before a layer; never leaves this file."""


class LayerPasses:
    """Passes through some of a model's layers.

    What comes before the layers (embeddings, masks, rotary tables) is always the model's own code.

    Args:
        model: a transformers model; a part of its base model's layers runs in each pass.

    Attributes:
        arguments: the names of the base model's arguments.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._base = model.base_model
        layers = describe(model).layers
        self._layers = [model.get_submodule(layer.name) for layer in layers]
        self._returns_tuple = any(layer.returns_tuple for layer in layers)
        self.arguments = frozenset(inspect.signature(self._base.forward).parameters)

    @torch.no_grad()
    def states_before(self, layer: int, inputs: Mapping[str, Any]) -> Tensor:
        """Return the hidden states that enter a layer, ``[B, S, D]``; the layer is not run.

        Args:
            layer: its index, at least 1.
            inputs: arguments of the base model.
        """
        seen: list[Tensor] = []

        def see(_module: nn.Module, _arguments: object, output: Any) -> None:  # noqa: ANN401 - Tensor or tuple
            seen.append(output[0] if self._returns_tuple else output)
            raise _StatesSeenError

        quiet = {**RECORD_NOTHING, **no_cache(self.arguments)}
        hook = self._layers[layer - 1].register_forward_hook(see)
        try:
            with suppress(_StatesSeenError):
                self._base(**inputs, **quiet)
        finally:
            hook.remove()
        return seen[0]

    @contextmanager
    def running_from(self, layer: int, states: Tensor) -> Iterator[None]:
        """Let the model start at a layer with these states, during a block.

        The layers below pass their input on, and the last of them returns the states.

        Args:
            layer: its index, at least 1.
            states: ``[B, S, D]``, of the batch that the model is called with.
        """
        skipped = self._layers[:layer]
        own = [vars(each).get("forward") for each in skipped]
        for each in skipped[:-1]:
            vars(each)["forward"] = self._pass_on
        vars(skipped[-1])["forward"] = lambda *_, **__: self._pass_on(states)
        try:
            yield
        finally:
            for each, forward in zip(skipped, own, strict=True):
                del vars(each)["forward"]
                if forward is not None:  # of another library
                    vars(each)["forward"] = forward

    def _pass_on(
        self, hidden_states: Tensor, *_: object, **__: object
    ) -> Tensor | tuple[Tensor, None]:
        """Return a layer's input as its output, which has no attention shares."""
        return (hidden_states, None) if self._returns_tuple else hidden_states
