"""Forward passes of a task's model, of one batch or all samples of a split, and their metrics."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from hifi.backbones.outputs import no_cache
from hifi.tasks import Batch
from hifi.training.batching import evaluation_batches, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.tasks import Examples, Task
    from hifi.training.batching import Indices
    from hifi.training.kept_states import KeptStates


@dataclass(frozen=True)
class PlacedBatch(Batch):
    """A batch on the model's device.

    Attributes:
        states: the hidden states that enter the first tuned layer, ``[B, S, D]``; None if the whole
            model has to run.
    """

    states: Tensor | None = None


class Forward:
    """Computes a model's logits.

    Args:
        model: on its device, in its dtype, tuned or not.
        task: its task.
        kept: the states of its frozen layers; None runs the whole model.
    """

    def __init__(
        self, model: PreTrainedModel, *, task: Task, kept: KeptStates | None = None
    ) -> None:
        self._model = model
        self._task = task
        self._kept = kept
        self._arguments = set(inspect.signature(model.forward).parameters)

    def batch(self, examples: Examples, indices: Indices) -> PlacedBatch:
        """Collate some samples on the model's device, in its dtype."""
        batch = examples.batch(indices).to(self._model.device, dtype=self._model.dtype)
        states = None if self._kept is None else self._kept.of(examples, indices, batch)
        return PlacedBatch(batch.inputs, batch.targets, states)

    def logits(self, batch: PlacedBatch) -> Tensor:
        """Return the logits of a batch, as the task's loss takes them."""
        inputs = {name: value for name, value in batch.inputs.items() if name in self._arguments}
        kept, states = self._kept, batch.states
        with nullcontext() if kept is None or states is None else kept.running_from(states):
            return self._task.logits_of(self._model(**inputs, **no_cache(self._arguments)))

    def over(
        self,
        examples: Examples,
        *,
        batch_size: int,
        rows: Indices | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return the logits of many samples in eval mode, float32, on the CPU.

        Args:
            examples: the split.
            batch_size: samples per batch.
            rows: the samples; by default all of them.
            on_batch: called after each batch with the number of batches so far, and of all.

        Returns:
            ``[n, …]``, in the order of ``rows``.
        """
        chosen = np.arange(len(examples)) if rows is None else rows
        each = self.batch_by_batch(examples, batch_size=batch_size, rows=chosen, on_batch=on_batch)
        batches, parts = zip(*each, strict=True)
        return gather(parts, batches)

    def batch_by_batch(
        self,
        examples: Examples,
        *,
        batch_size: int,
        rows: Indices,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Indices, Tensor]]:
        """Yield the logits of each batch of some samples, as :meth:`over` computes them.

        Yields:
            Indices into ``rows``, ``[B]``, and logits ``[B, …]``.
        """
        self._model.eval()
        batches = evaluation_batches(examples.lengths[rows], batch_size=batch_size)
        for number, indices in enumerate(batches, start=1):
            with torch.no_grad():
                logits = self.logits(self.batch(examples, rows[indices])).float().cpu()
            yield indices, logits
            if on_batch is not None:
                on_batch(number, len(batches))


@dataclass(frozen=True, eq=False)
class Scored:
    """The logits of a split; what takes long to find in them is computed once.

    Attributes:
        task: of the logits.
        logits: float32, of all samples, on the CPU.
        examples: the samples.
    """

    task: Task
    logits: Tensor
    examples: Examples

    @cached_property
    def loss(self) -> float:
        """The mean loss."""
        return self.task.loss(self.logits, self.examples.targets).item()

    @cached_property
    def found(self) -> Tensor:
        """The condensed logits; those that are not finite may not be condensed."""
        return self.task.condense(self.logits, self.examples)

    def metrics(self, task: Task) -> dict[str, float]:
        """Return every metric and ``loss``, by name in alphabetical order.

        Args:
            task: that of the logits, or with numbers that are fitted to them.
        """
        found = task.evaluate(self.found, self.examples)
        return dict(sorted({**found, "loss": self.loss}.items()))


def rank(metrics: Mapping[str, float], metric: str) -> tuple[float, float]:
    """Return what the best step has most of: the metric, and among equals the least loss."""
    return metrics[metric], -metrics["loss"]
