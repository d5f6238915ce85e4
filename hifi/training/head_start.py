"""Where a task head starts, and what a result is compared with: probe, majority, untuned model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from hifi.backbones.heads import HiddenLayer, task_head_layers
from hifi.data.run_warnings import RunWarning, warn_of_failed_probe
from hifi.errors import InvalidArgumentError, ProbeError
from hifi.tasks.probe import TRIES
from hifi.training.batching import gather
from hifi.training.forward import Forward, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.backbones.heads import TaskHeadLayers
    from hifi.data.settings import Hyperparameters
    from hifi.tasks import Examples, Task
    from hifi.tasks.probe import LinearProbe, ProbeKind
    from hifi.training.batching import Indices
    from hifi.training.kept_states import KeptStates
    from hifi.training.preparation import Prepared

Yardsticks = Mapping[str, Mapping[str, float]]
OnBatch = Callable[[int, int], None]
_Layer = Callable[[Tensor], Tensor]  # states [..., D] to logits [..., num_labels]

_SAMPLES = 256  # measure the states that a hidden layer reads
# Where a hidden layer puts each of the states that it passes on: mean and standard deviation of
# what its activation reads. There tanh and GELU are nearly linear, and ReLU cuts one row in 700.
_RANGES = {"tanh": (0.0, 0.25), "gelu": (0.0, 0.25), "relu": (0.75, 0.25)}


@dataclass(frozen=True, kw_only=True, eq=False)
class StartedHead:
    """Where a task head starts.

    Attributes:
        parameters: float32, by name; those that differ from the model's, which has them too,
            rounded to its dtype.
        yardsticks: what the metrics of the tuned model are compared with: all metrics, and
            ``loss``, on the validation split, of the ``majority`` class (or the mean), of the
            ``probe`` and of the ``untuned`` model, if its task head is kept. Empty without a
            validation split.
        warnings: about the probe.
    """

    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    yardsticks: Yardsticks = field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()


def start_head(
    ready: Prepared,
    *,
    settings: Hyperparameters,
    kept: KeptStates | None = None,
    on_batch: OnBatch | None = None,
) -> StartedHead:
    """Fit a linear probe on the frozen model, start the task head from it if wanted, and compare.

    The probe reads what the last layer of the task head reads. In front of it, a hidden layer that
    the checkpoint lacks passes on the backbone's states one by one, scaled so that its activation
    stays nearly linear: a random projection would hide them. One pass over at most 10,000 training
    rows, and one over the validation split, give all that is computed here.

    Args:
        ready: the encoded data and the model, not tuned yet. Its task head is changed if it starts
            from the probe.
        settings: ``head_start``; ``seed`` draws the rows of the probe.
        kept: the states of layers that stay frozen, which the passes fill. A pass over some of the
            training rows does not: their groups have others too. None if there are none.
        on_batch: called after each batch and after each try of the probe's fit, with the number of
            them so far and of all; an exception that it raises ends the start.

    Raises:
        InvalidArgumentError: ``head_start`` is ``probe``, but the task has none.
    """
    task, validation = ready.data.task, ready.data.validation
    is_wanted = ready.kept_head is None and settings.head_start != "random"
    layers = task_head_layers(ready.loaded.model, extra=ready.loaded.task_head_modules)
    if task.probe is None or layers is None:
        if settings.head_start == "probe":
            limit = f"auto, keep or random: a {task.type} task with this model has no linear probe"
            raise InvalidArgumentError("head_start", value="probe", limit=limit)
        return StartedHead()
    if not is_wanted and validation is None:
        return StartedHead()
    run = _ProbeRun(
        ready, settings=settings, kept=kept, kind=task.probe, layers=layers, on_batch=on_batch
    )
    return run.start(is_wanted=is_wanted)


class _ProbeRun:
    """The frozen pass over a prepared task, and what is made of it."""

    def __init__(
        self,
        ready: Prepared,
        *,
        settings: Hyperparameters,
        kept: KeptStates | None,
        kind: ProbeKind,
        layers: TaskHeadLayers,
        on_batch: OnBatch | None,
    ) -> None:
        self._model = ready.loaded.model
        self._is_fresh = ready.kept_head is None
        self._unit = ready.data.task.declaration.logits
        self._data = ready.data
        self._forward = Forward(self._model, task=ready.data.task, kept=kept)
        self._training = self._forward  # of the training rows
        self._settings = settings
        self._kind = kind
        self._last = cast("nn.Linear", self._model.get_submodule(layers.last))
        self._layers = layers
        self._on_batch = on_batch
        self._before = 0  # batches and tries before the pass over the validation split

    def start(self, *, is_wanted: bool) -> StartedHead:
        """Return the start of the task head, from the probe if wanted and possible."""
        before = self._read_hidden()
        hidden: dict[str, Tensor] = {}
        probe: LinearProbe | None = None
        warnings: tuple[RunWarning, ...] = ()
        try:
            rows = self._draw_rows()
            if len(rows) < len(self._data.train):
                self._training = Forward(self._model, task=self._data.task)
            hidden = self._open_hidden(rows) if self._is_fresh else {}
            probe = self._fit(rows)
        except ProbeError as error:
            warnings = (warn_of_failed_probe(str(error)),)
        yardsticks = self._compare(probe)
        if probe is None or not is_wanted:
            _write(self._model, before)
            return StartedHead(yardsticks=yardsticks, warnings=warnings)
        last = {"weight": probe.weight, **({} if probe.bias is None else {"bias": probe.bias})}
        parameters = {**hidden, **{f"{self._layers.last}.{name}": last[name] for name in last}}
        _write(self._model, parameters)
        return StartedHead(parameters=parameters, yardsticks=yardsticks, warnings=warnings)

    def _draw_rows(self) -> Indices:
        rows = self._kind.draw_rows(
            self._data.train.targets,
            width=self._last.in_features,
            num_labels=self._data.task.num_logits,
            seed=self._settings.seed,
        )
        return rows.numpy()

    def _fit(self, rows: Indices) -> LinearProbe:
        """Fit the probe on what the last layer reads of the drawn rows."""
        batches = -(-len(rows) // self._settings.batch_size)
        self._before = batches + TRIES
        features, targets = self._read_examples(
            rows, nn.Identity(), on_batch=lambda number, _: self._report(number)
        )
        if self._unit == "choice":
            features, targets = self._kind.examples(features, targets)
        return self._kind.fit(
            features,
            targets,
            num_labels=self._data.task.num_labels,
            has_bias=self._last.bias is not None,
            seed=self._settings.seed,
            on_try=lambda number: self._report(batches + number),
        )

    def _read_examples(
        self, rows: Indices, layer: _Layer, *, on_batch: OnBatch | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a layer's outputs in the place of the last one, ``[m, …]``, and the targets.

        Of tokens batch by batch, so that no padding is kept: one long row would multiply it.

        Args:
            rows: of the training split.
            layer: reads what the last layer reads.
            on_batch: as for :func:`start_head`.
        """
        train = self._data.train
        targets = train.targets[torch.from_numpy(rows)]
        read = self._outputs(self._training, train, rows=rows, layers=[layer], on_batch=on_batch)
        if self._unit != "token":
            batches, parts = zip(*read, strict=True)
            return gather(parts, batches), targets
        pairs = [
            self._kind.examples(states, targets[torch.from_numpy(indices)])
            for indices, states in read
        ]
        states, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
        return states, labels

    def _outputs(
        self,
        forward: Forward,
        examples: Examples,
        *,
        rows: Indices,
        layers: Collection[_Layer],
        on_batch: OnBatch | None,
    ) -> Iterator[tuple[Indices, Tensor]]:
        """Yield the outputs of layers in the place of the last one, side by side.

        Yields:
            Indices into ``rows``, ``[B]``, and for each layer ``[B, …]``, float32, on the CPU.
        """
        beside, size = _SideBySide(layers), self._settings.batch_size
        run = partial(
            forward.batch_by_batch, examples, rows=rows, batch_size=size, on_batch=on_batch
        )
        if self._unit == "sample":  # a decoder reads the last token of what comes in their place
            with _replaced(self._model, self._layers.last, beside):
                yield from run()
            return
        # A model for questions divides its logits into two, one for choices puts them side by side.
        seen: dict[str, Tensor] = {}
        hook = self._last.register_forward_pre_hook(
            lambda _, arguments: seen.update(states=arguments[0])
        )
        try:
            for indices, _ in run():
                with torch.no_grad():
                    found = beside(seen["states"]).cpu()
                if self._unit == "choice":  # of all rows, one after the other
                    found = found.unflatten(0, (len(indices), -1))
                yield indices, found
        finally:
            hook.remove()

    def _compare(self, probe: LinearProbe | None) -> Yardsticks:
        """Compute the yardsticks; a number that is not finite leaves out its yardstick."""
        task, validation = self._data.task, self._data.validation
        if validation is None:
            return {}
        known = self._kind.constant(self._data.train.targets, num_labels=task.num_logits)
        shape = validation.targets.shape[: 2 if self._unit == "token" else 1]
        logits = {"majority": known.expand(*shape, -1)}
        layers: dict[str, _Layer] = {} if probe is None else {"probe": probe.logits}
        if not self._is_fresh:
            layers["untuned"] = self._last
        if layers:
            logits |= self._read_logits(validation, layers)
        found = {
            name: _measure(task, each, validation)
            for name, each in logits.items()
            if bool(each.isfinite().all())
        }
        return {
            name: metrics
            for name, metrics in found.items()
            if all(map(math.isfinite, metrics.values()))
        }

    def _read_logits(self, validation: Examples, layers: Mapping[str, _Layer]) -> dict[str, Tensor]:
        """Return the logits ``[n, …, num_labels]`` of each layer in the place of the last one.

        All are computed in one pass, so that no states are kept.
        """
        read = self._outputs(
            self._forward,
            validation,
            rows=np.arange(len(validation)),
            layers=layers.values(),
            on_batch=lambda number, _: self._report(self._before + number),
        )
        batches, parts = zip(*read, strict=True)
        logits = gather(parts, batches)
        if self._unit == "choice":
            return dict(zip(layers, logits.unbind(-1), strict=True))
        return dict(zip(layers, logits.chunk(len(layers), dim=-1), strict=True))

    def _report(self, number: int) -> None:
        """Tell the caller how many batches and tries are done."""
        if self._on_batch is not None:
            rows = 0 if self._data.validation is None else len(self._data.validation)
            self._on_batch(number, self._before + -(-rows // self._settings.batch_size))

    def _read_hidden(self) -> dict[str, Tensor]:
        """Copy the hidden layer that is opened for the pass; empty if there is none."""
        hidden = self._layers.hidden
        if hidden is None:
            return {}
        module = self._model.get_submodule(hidden.name)
        named = module.named_parameters()
        return {f"{hidden.name}.{name}": value.detach().clone() for name, value in named}

    def _open_hidden(self, rows: Indices) -> dict[str, Tensor]:
        """Let a fresh hidden layer pass on its states; return its parameters, if they changed."""
        hidden = self._layers.hidden
        if hidden is None or hidden.activation not in _RANGES:
            return {}
        module = cast("nn.Linear", self._model.get_submodule(hidden.name))
        if module.in_features != module.out_features:
            return {}
        seen: dict[str, Tensor] = {}
        hook = module.register_forward_pre_hook(
            lambda _, arguments: seen.update(states=arguments[0].detach())
        )
        some = rows[:: -(-len(rows) // _SAMPLES)]
        try:
            states, _ = self._read_examples(some, lambda _: seen["states"])
            states = states.flatten(0, -2)  # of choices too
        finally:
            hook.remove()
        opened = _pass_on(states, module, hidden=hidden)
        _write(self._model, opened)
        return opened


def _measure(task: Task, logits: Tensor, examples: Examples) -> dict[str, float]:
    """Return the metrics of a split's logits with the numbers that fit it best."""
    scored = Scored(task, logits, examples)
    return scored.metrics(task.with_answers(task.fit_answers(scored.found, examples)))


class _SideBySide(nn.Module):
    """Several layers in the place of one; their outputs side by side, in float32."""

    def __init__(self, layers: Collection[_Layer]) -> None:
        super().__init__()
        self._layers = tuple(layers)

    def forward(self, states: Tensor) -> Tensor:
        return torch.cat([layer(states).float() for layer in self._layers], dim=-1)


def _pass_on(states: Tensor, module: nn.Linear, *, hidden: HiddenLayer) -> dict[str, Tensor]:
    """Return the weights with which a hidden layer passes on each of its states alone.

    Args:
        states: a sample of what it reads, ``[n, D]``.
        module: the layer.
        hidden: its name and its activation.

    Returns:
        Its parameters by name, float32, rounded to the layer's dtype.
    """
    mean, spread = _RANGES[hidden.activation]
    has_bias = "bias" in dict(module.named_parameters())
    center = states.mean(0) if has_bias else torch.zeros(states.shape[1])
    found = ((states - center) ** 2).mean(0).sqrt()
    # A state that hardly varies here may vary later: it must not fill the range already.
    least = (found.median() / 10).maximum((states**2).mean(0).sqrt().median() / 1000)
    found = found.maximum(least)
    scale = spread / torch.where(found > 0, found, 1.0)
    values = {"weight": scale.diag()}
    if has_bias:
        values["bias"] = mean - scale * center
    dtype = module.weight.dtype
    return {f"{hidden.name}.{name}": value.to(dtype).float() for name, value in values.items()}


@torch.no_grad()
def _write(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


@contextmanager
def _replaced(model: PreTrainedModel, name: str, module: nn.Module) -> Iterator[None]:
    """Replace a module of a model during a block."""
    own = model.get_submodule(name)
    model.set_submodule(name, module)
    try:
        yield
    finally:
        model.set_submodule(name, own)
