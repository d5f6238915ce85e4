"""Capture head outputs O_h: the input of each layer's output projection in a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hifi.backbones.heads import describe, first_token_layer
from hifi.backbones.outputs import OUTPUT_ARGUMENTS, RECORD_NOTHING, no_cache
from hifi.errors import CaptureError, InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnHeadOutput = Callable[[int, Tensor, Tensor], None]
LossFunction = Callable[[Any, Mapping[str, Any]], Tensor]
_PreHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]
RunBatch = Callable[[Mapping[str, Any]], int]


@contextmanager
def capture_head_outputs(
    model: PreTrainedModel, *, on_head_output: OnHeadOutput, loss: LossFunction | None = None
) -> Iterator[RunBatch]:
    """Run batches through a model and pass every layer's head outputs to a callback.

    Only the backbone runs, in eval mode and without gradients; with a ``loss`` the whole model
    runs, and the loss's gradient runs back through it. No head output is kept. Each sample's real
    tokens are first moved to the front, so that left padding does not shift absolute positions, and
    columns of padding alone are cut off. Hooks exist while a batch runs. When the block ends, even
    by an exception, every module's ``training`` flag is restored.

    Args:
        model: a transformers model, bare or with a task head, tuned or not.
        on_head_output: called as ``on_head_output(layer, head_output, real)`` in the order of the
            layers: O_h before W^O, shape ``[B, S, H·G, D']`` in the model's dtype, where H·G
            counts query heads; and bool ``[B, S]``, True at real tokens. O_h has no gradient.
        loss: called as ``loss(output, batch)`` with the model's output for a batch and the batch;
            returns a scalar. Its gradient reaches the parameters that require one; nothing is
            updated, and the caller restores their ``grad``.

    Yields:
        A function that runs one batch and returns B, the number of its samples. A batch is a
        mapping as ``model.forward`` takes it; entries that the backbone does not use, such as
        labels, are ignored, as are requests to record or to cache. With a ``loss`` the model also
        gets the labels; those of tokens move with the tokens. ``attention_mask`` marks real tokens;
        without it all tokens are real, as are all patches of an image. Batches ``[B, choices, S]``
        count each choice as a sample.

        The function raises InvalidArgumentError for a batch that cannot be scored, and
        CaptureError if the forward pass does not run every layer once, in order, or if the loss is
        not finite.

    Raises:
        UnsupportedArchitectureError: the model's heads cannot be located.
    """
    capture = _Capture(model, on_head_output, loss)
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield capture.run
    finally:
        for module, flag in training:
            module.training = flag


@dataclass(frozen=True)
class _Batch:
    """The tensors of one batch, as inputs of the backbone.

    ``real`` is bool ``[B, S]``, None for images.
    """

    inputs: dict[str, Tensor]
    samples: int
    real: Tensor | None


class _LastLayerSeenError(Exception):
    """Ends a forward pass after the last layer's attention; never leaves this file."""


class _Capture:
    """The state of one capture: the samples seen and the next layer."""

    def __init__(
        self, model: PreTrainedModel, on_head_output: OnHeadOutput, loss: LossFunction | None
    ) -> None:
        self._backbone = describe(model)
        self._model = model
        self._watched: list[tuple[nn.Module, _PreHook]] = [
            (model.get_submodule(layer.output_name), partial(self._see, layer.index))
            for layer in self._backbone.layers
        ]
        first = None if loss is None else first_token_layer(model)
        if first is not None:
            see_last = partial(self._see_and_keep_first, len(self._watched) - 1)
            self._watched[-1] = (model.get_submodule(first.output), see_last)
        self._on_head_output = on_head_output
        self._loss = loss
        runs = model.base_model if loss is None else model
        self._names = set(inspect.signature(runs.forward).parameters)
        self._samples = 0
        self._next_layer = 0
        self._verified = False
        self._batch = _Batch({}, samples=0, real=None)

    def run(self, batch: Mapping[str, Any]) -> int:
        """Run one batch; return its number of samples."""
        inputs = _backbone_inputs(batch, model=self._model, names=self._names)
        flags = {
            name: batch[name]
            for name in self._names & batch.keys() - OUTPUT_ARGUMENTS
            if isinstance(batch[name], bool)
        }
        choices = _find_choices(inputs)
        self._batch = _real_tokens_first(
            {**inputs, **{name: value.flatten(0, 1) for name, value in choices.items()}},
            samples_before=self._samples,
        )
        quiet = {**RECORD_NOTHING, **no_cache(self._names)}
        self._next_layer = 0
        with ExitStack() as hooks:  # between batches the caller may run the model
            for module, see in self._watched:
                hooks.enter_context(module.register_forward_pre_hook(see))
            if self._loss is None:
                # Not inference_mode: tensors that the model caches here (rotary tables) must remain
                # usable in training.
                with suppress(_LastLayerSeenError), torch.no_grad():
                    self._model.base_model(**self._batch.inputs, **flags, **quiet)
            else:
                questions = {  # [B, choices, S], as the model takes them
                    name: self._batch.inputs[name].unflatten(0, value.shape[:2])
                    for name, value in choices.items()
                }
                with torch.enable_grad():
                    output = self._model(**{**self._batch.inputs, **questions}, **flags, **quiet)
                    loss = self._loss(output, batch)
        if self._next_layer != self._backbone.num_layers:
            raise CaptureError(
                f"the forward pass ran {self._next_layer} of {self._backbone.num_layers} layers"
            )
        if self._loss is not None:
            _run_back(loss)
        self._verified = True
        self._samples += self._batch.samples
        return self._batch.samples

    def _see(self, layer: int, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Pass the input of one layer's output projection on (a forward pre-hook)."""
        if layer != self._next_layer:
            raise CaptureError(
                f"layer {layer} ran instead of layer {self._next_layer} of "
                f"{self._backbone.num_layers}: a forward pass must run every layer once, in order"
            )
        head_output = self._checked(layer, arguments[0] if arguments else None).detach()
        real = self._batch.real
        if real is None:
            real = head_output.new_ones(head_output.shape[:2], dtype=torch.bool)
        self._on_head_output(layer, head_output, real)
        self._next_layer += 1
        # The first forward pass runs to its end, to verify that no layer runs twice. The others
        # stop here, unless there is a loss: the last layer's feed-forward block is not needed.
        is_last = self._next_layer == self._backbone.num_layers
        if self._verified and is_last and self._loss is None:
            raise _LastLayerSeenError

    def _see_and_keep_first(
        self, layer: int, module: nn.Module, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Pass the last layer's head outputs on, then keep the token that the task head reads.

        The other tokens reach neither the logits nor a gradient, so W^O and the feed-forward block
        are not needed for them (a forward pre-hook of both).
        """
        self._see(layer, module, arguments)
        return tuple(
            value[:, :1].contiguous() if isinstance(value, Tensor) else value for value in arguments
        )

    def _checked(self, layer: int, output: object) -> Tensor:
        """Return W^O's input ``[B, S, H·G·D']`` as ``[B, S, H·G, D']``."""
        if not isinstance(output, Tensor):
            raise CaptureError(f"layer {layer}: W^O was called without a tensor as first argument")
        heads, width = self._backbone.num_query_heads, self._backbone.head_dim
        real, got = self._batch.real, tuple(output.shape)
        # The number of patches of an image is known only here.
        tokens = got[1:2] if real is None else (real.shape[1],)
        expected = (self._batch.samples, *tokens, heads * width)
        if got != expected:
            raise CaptureError(
                f"layer {layer}: the head outputs have shape {got}; expected {expected}, "
                "that is (samples, tokens, heads times width)"
            )
        return output.view(*got[:2], heads, width)


def _backbone_inputs(
    batch: Mapping[str, Any], *, model: PreTrainedModel, names: set[str]
) -> dict[str, Tensor]:
    """Pick the tensors that the backbone takes; move them to its device and dtype."""
    if not isinstance(batch, Mapping):
        raise InvalidArgumentError(
            "batches", value=type(batch).__name__, limit="an iterable of mappings, each one batch"
        )
    inputs = {}
    for name, value in batch.items():
        if name not in names or name in OUTPUT_ARGUMENTS:  # a batch cannot set these
            continue
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, Tensor):
            raise InvalidArgumentError(name, value=type(value).__name__, limit="a tensor")
        dtype = model.dtype if value.is_floating_point() else value.dtype
        inputs[name] = value.to(device=model.device, dtype=dtype)
    if not inputs.keys() & {"input_ids", "inputs_embeds", "pixel_values"}:
        raise InvalidArgumentError(
            "batches",
            value=sorted(batch),
            limit="input_ids, inputs_embeds or pixel_values in every batch",
        )
    for name, value in inputs.items():
        if value.numel() == 0:
            limit = "at least one sample with at least one token"
            raise InvalidArgumentError(name, value=tuple(value.shape), limit=limit)
    return inputs


def _real_tokens_first(inputs: dict[str, Tensor], *, samples_before: int) -> _Batch:
    """Move each sample's padding behind its real tokens and cut off columns of padding alone.

    Args:
        inputs: the model's inputs, ``[B, S, …]`` for text.
        samples_before: number of samples in earlier batches, to number a sample in an error.
    """
    if "pixel_values" in inputs:
        return _Batch(inputs, samples=len(inputs["pixel_values"]), real=None)
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
    if tokens.ndim != 2:
        raise InvalidArgumentError(
            "batches", value=tuple(tokens.shape), limit="[B, S] or [B, choices, S] tokens"
        )
    samples, length = tokens.shape
    if "attention_mask" not in inputs:
        return _Batch(inputs, samples=samples, real=torch.ones_like(tokens, dtype=torch.bool))
    real = _checked_mask(
        inputs["attention_mask"], shape=(samples, length), samples_before=samples_before
    )
    inputs = {**inputs, "attention_mask": real.long()}
    steps = torch.arange(length, device=real.device)
    order = (steps + real.int().argmax(1, keepdim=True)) % length  # [B, S], source positions
    real = real.gather(1, order)
    longest = int((real * (steps + 1)).max())
    rows = torch.arange(samples, device=real.device)[:, None]
    moved = {}
    for name, value in inputs.items():
        per_token = value.expand(tokens.shape) if value.shape == (1, length) else value
        is_per_token = per_token.shape[:2] == tokens.shape and not (
            name == "labels" and value.is_floating_point()  # one for each of S classes
        )
        moved[name] = per_token[rows, order[:, :longest]] if is_per_token else value
    return _Batch(moved, samples=samples, real=real[:, :longest])


def _find_choices(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs ``[B, choices, S]``, each choice of which counts as a sample."""
    shapes = [
        inputs[name].shape[:2]
        for name, rank in (("input_ids", 3), ("inputs_embeds", 4))
        if name in inputs and inputs[name].ndim == rank
    ]
    if not shapes:
        return {}
    return {name: value for name, value in inputs.items() if value.shape[:2] == shapes[0]}


def _run_back(loss: object) -> None:
    """Check a loss and compute its gradients.

    Raises:
        InvalidArgumentError: not a scalar of the model's output.
        CaptureError: the loss is not finite.
    """
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        value = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        limit = "a function of the model's output that returns a scalar tensor"
        raise InvalidArgumentError("loss", value=value, limit=limit)
    if not bool(loss.isfinite()):
        raise CaptureError(f"the loss of a calibration batch is {loss.item()}")
    torch.autograd.backward(loss)


def _checked_mask(mask: Tensor, *, shape: tuple[int, ...], samples_before: int) -> Tensor:
    """Check the attention mask and return it as bool ``[B, S]``."""
    if tuple(mask.shape) != shape:
        raise InvalidArgumentError(
            "attention_mask",
            value=tuple(mask.shape),
            limit=f"shape {shape}, one entry per token; masks over pairs of tokens do not mark "
            "the real tokens",
        )
    real = mask != 0
    if not torch.equal(real.to(mask.dtype), mask):
        odd = mask[real & (mask != 1)][0].item()
        raise InvalidArgumentError("attention_mask", value=odd, limit="1 at real tokens, else 0")
    if not bool(real.any(1).all()):
        sample = samples_before + int(real.any(1).int().argmin()) + 1
        raise InvalidArgumentError(
            "attention_mask",
            value=f"all zero for sample {sample}",
            limit="at least one real token in every sample (samples counted from 1)",
        )
    return real
