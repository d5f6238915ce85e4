"""Train a rival for a number of steps, without evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import TYPE_CHECKING

import torch

from benchmarks.paper.methods.rival import Rival, Steps
from hifi.data.training_defaults import count_steps_per_epoch
from hifi.training.batching import TrainingBatches
from hifi.training.schedule import Schedule

if TYPE_CHECKING:
    from hifi.data.settings import Hyperparameters
    from hifi.tasks import Batch, Examples
    from hifi.training.preparation import Prepared

Build = Callable[["Prepared", "Hyperparameters"], Rival]


def steps_of(ready: Prepared, settings: Hyperparameters, *, steps: int | None) -> int:
    """Return the number of steps: as many as were asked for, else those of one epoch."""
    if steps is not None:
        return steps
    return count_steps_per_epoch(rows=len(ready.data.train), batch_size=settings.batch_size)


def train(ready: Prepared, build: Build, *, settings: Hyperparameters, steps: int) -> Iterator[int]:
    """Train a model in place, with hifi's batches, schedule and clipping.

    Args:
        ready: the data and the model.
        build: prepares the model for training, in place.
        settings: rate, batch size and seed.
        steps: how many, whatever part of an epoch they are.

    Yields:
        The number of steps taken, from 0, in eval mode.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        rival = build(ready, settings)
        rival.network.eval()
        yield 0
        schedule = Schedule(
            epochs=1,
            steps_per_epoch=steps,
            learning_rate=settings.peak_rate(hidden_size=ready.hidden_size),
            warmup_ratio=settings.warmup_ratio,
        )
        step = Steps(rival, task=ready.data.task, settings=settings, schedule=schedule)
        for batch in islice(_batches(ready.data.train, settings), steps):
            rival.set_training()
            step.take(batch)
            rival.network.eval()
            yield step.taken


def _batches(train: Examples, settings: Hyperparameters) -> Iterator[Batch]:
    batches = TrainingBatches(
        lengths=train.lengths, batch_size=settings.batch_size, seed=settings.seed
    )
    for epoch in count():
        for indices in batches.epoch(epoch):
            yield train.batch(indices)
