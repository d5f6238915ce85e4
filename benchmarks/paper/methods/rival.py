"""How rivals train: one loop with hifi's batches, schedule and clipping, in float32."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.paper.methods.base import (
    Metrics,
    Outcome,
    Run,
    encode,
    evaluate,
    file_bytes,
    logits_by,
)
from benchmarks.paper.methods.encoded import read_back
from benchmarks.paper.methods.head_starts import HEAD_STARTS, RANDOM
from hifi.backbones.heads import task_head_names
from hifi.errors import TrainingDivergedError
from hifi.training.batching import TrainingBatches
from hifi.training.forward import rank
from hifi.training.schedule import Schedule
from hifi.training.trainer import MAX_GRADIENT_NORM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmarks.paper.methods.base import MetricsBySplit
    from hifi.data.settings import Hyperparameters
    from hifi.deltas.metadata import Encoding
    from hifi.tasks import Batch, Examples, Task
    from hifi.training.preparation import Prepared


class Rival:
    """A model prepared for training by one method; by default trains what requires a gradient.

    Args:
        network: called by the loop; the model, or a wrapper around it.
        head: names of the task head's parameters; only for rivals that are measured in several
            encodings.

    Attributes:
        network: as above.
    """

    def __init__(self, network: nn.Module, *, head: Collection[str] = ()) -> None:
        self.network = network
        self._head_names = set(head)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer changes, by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups: weight decay for matrices, as in ``hifi.training``."""
        parameters = list(self.trained().values())
        return [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]

    def set_training(self) -> None:
        """Enable dropout as the checkpoint has it."""
        self.network.train()

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss of a batch."""
        return 0.0

    def after_backward(self) -> None:
        """Change the gradients of a batch before they are clipped."""

    def start_epoch(self, epoch: int, *, epochs: int) -> None:
        """Change what is trained at the beginning of an epoch, from 0."""

    def counts(self, epoch: int, *, epochs: int) -> bool:  # noqa: ARG002 - for rivals with phases
        """Return whether the weights after an epoch may be kept."""
        return True

    def head(self) -> set[str]:
        """Return the names of the trained parameters of the task head."""
        return self._head_names

    def origin(self, start: Tensor) -> Tensor:
        """Return what is known of a trained parameter without a file: where it started."""
        return start.detach().clone()

    def count_trained(self) -> int:
        """Return the number of trained weights."""
        return sum(parameter.numel() for parameter in self.trained().values())

    def stored_bytes(self) -> int:
        """Return the size of a file with what one stores for a task, in float32."""
        return file_bytes(self.trained())


class Steps:
    """Takes the optimizer's steps of a rival.

    Args:
        rival: in training mode when a step is taken.
        task: has the loss.
        settings: ``weight_decay`` is the matrices'.
        schedule: has the learning rate of each step.

    Attributes:
        taken: the number of steps so far.
    """

    def __init__(
        self, rival: Rival, *, task: Task, settings: Hyperparameters, schedule: Schedule
    ) -> None:
        self.taken = 0
        self._rival, self._task, self._schedule = rival, task, schedule
        self._trained = list(rival.trained().values())
        self._logits = logits_by(rival.network, task)
        self._optimizer = torch.optim.AdamW(
            rival.groups(),
            lr=schedule.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]

    def take(self, batch: Batch) -> None:
        """Train on one batch.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        share = self._schedule.rate_at(self.taken) / self._schedule.learning_rate
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        loss = self._task.loss(self._logits(batch.inputs), batch.targets)
        loss = loss + self._rival.penalty()
        _check(loss.item(), where="a training loss")
        loss.backward()
        self._rival.after_backward()
        nn.utils.clip_grad_norm_(self._trained, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.taken += 1


def trained_by(
    build: Callable[[Prepared, Hyperparameters], Rival], *, encodings: Sequence[Encoding] = ()
) -> Callable[[Run], Outcome]:
    """Return the ``run`` of a method that trains a rival.

    Args:
        build: prepares a loaded model for training, in place. The task head has its start by then.
        encodings: in which what is stored is encoded, read back and measured too.
    """

    def run(run: Run) -> Outcome:
        settings = run.settings
        ready = run.prepare()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # LoRA draws its A
            HEAD_STARTS[run.head_start](ready, settings)
            training = _Training(ready, build, run=run, settings=settings, encodings=encodings)
            return training.measure_encoded(training.run())

    return run


class _Training:
    """One training of a rival."""

    def __init__(
        self,
        ready: Prepared,
        build: Callable[[Prepared, Hyperparameters], Rival],
        *,
        run: Run,
        settings: Hyperparameters,
        encodings: Sequence[Encoding],
    ) -> None:
        self._ready, self._run, self._settings = ready, run, settings
        self._schedule = Schedule.of(
            settings, rows=len(ready.data.train), hidden_size=ready.hidden_size
        )
        self._encodings = encodings
        begin = time.perf_counter()
        self._rival = build(ready, settings)
        self._selection_seconds = time.perf_counter() - begin
        self._trained = self._rival.trained()
        kept = self._trained.items() if encodings else ()
        self._origins = {name: self._rival.origin(parameter) for name, parameter in kept}
        self._training_seconds = 0.0
        self._test_rows: Examples | None = None

    def run(self) -> Outcome:
        """Train, keep the best epoch on validation, measure it on test."""
        ready, rival = self._ready, self._rival
        validation = ready.data.validation
        assert validation is not None  # noqa: S101 - every run has one
        trained = self._trained
        evaluations: list[Metrics] = []
        best, kept = None, {name: p.detach().clone() for name, p in trained.items()}
        metric = ready.data.task.metric
        for epoch in self._epochs():
            metrics = evaluate(ready, validation, self._logits)
            when = "at the start" if epoch is None else f"after epoch {epoch + 1}"
            _check(metrics["loss"], where=f"the validation loss {when}")
            evaluations.append(metrics)
            if epoch is not None and not rival.counts(epoch, epochs=self._schedule.epochs):
                continue
            if best is None or rank(metrics, metric) > rank(evaluations[best], metric):
                best = len(evaluations) - 1
                kept = {name: p.detach().clone() for name, p in trained.items()}
        self._set(kept)
        return Outcome(
            evaluations=evaluations,
            best=best or 0,
            test=self._test(),
            seconds={"selection": self._selection_seconds, "training": self._training_seconds},
            trained_weights=rival.count_trained(),
            stored_bytes={"float32": rival.stored_bytes()},
            fingerprint=ready.fingerprint,
            learning_rate=self._schedule.learning_rate,
            epochs=self._schedule.epochs,
        )

    def measure_encoded(self, outcome: Outcome) -> Outcome:
        """Add bytes and metrics in further encodings to the outcome of the run."""
        validation = self._ready.data.validation
        assert validation is not None  # noqa: S101 - as above
        kept = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        sizes = dict(outcome.stored_bytes)
        encoded: dict[str, MetricsBySplit] = {}
        for encoding in self._encodings:
            sizes[encoding], values = read_back(
                kept, origins=self._origins, head=self._rival.head(), encoding=encoding
            )
            self._set(values)
            metrics = evaluate(self._ready, validation, self._logits)
            encoded[encoding] = {"validation": metrics, "test": self._test()}
        self._set(kept)
        return replace(outcome, stored_bytes=sizes, encoded=encoded)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])

    def _test(self) -> Metrics | None:
        if self._run.splits.test is None:
            return None
        if self._test_rows is None:
            self._test_rows = encode(self._ready, self._run.splits.test, split="test")
        return evaluate(self._ready, self._test_rows, self._logits)

    def _epochs(self) -> Iterator[int | None]:
        """Train epoch by epoch; yield after each, in eval mode, and None before the first one.

        As in ``hifi.training``, a start at random is not worth an evaluation.
        """
        if self._run.head_start != RANDOM:
            self._rival.network.eval()
            yield None
        settings, train = self._settings, self._ready.data.train
        schedule = self._schedule
        steps = Steps(self._rival, task=self._ready.data.task, settings=settings, schedule=schedule)
        batches = TrainingBatches(
            lengths=train.lengths, batch_size=settings.batch_size, seed=settings.seed
        )
        torch.manual_seed(self._settings.seed)
        for epoch in range(schedule.epochs):
            self._rival.start_epoch(epoch, epochs=schedule.epochs)
            self._rival.set_training()
            begin = time.perf_counter()
            for indices in batches.epoch(epoch):
                steps.take(train.batch(indices))
            self._training_seconds += time.perf_counter() - begin
            self._rival.network.eval()
            if schedule.is_evaluated_after(steps.taken):
                yield epoch

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return logits_by(self._rival.network, self._ready.data.task)(inputs)


def head_names(ready: Prepared) -> set[str]:
    """Return the names of the task head's parameters, a pooler that was missing among them."""
    loaded = ready.loaded
    return set(task_head_names(loaded.model, extra=loaded.task_head_modules))


def head_modules(ready: Prepared) -> list[str]:
    """Return the top modules of the task head, which PEFT trains and stores beside an adapter."""
    names = task_head_names(ready.loaded.model)
    own = dict.fromkeys(name.partition(".")[0] for name in names)
    return [*own, *ready.loaded.task_head_modules]


def train_only(model: PreTrainedModel, names: set[str], *, head: Collection[str] = ()) -> Rival:
    """Return a rival that trains these parameters and no others, those of the task head named."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return Rival(model, head=head)


def _check(loss: float, *, where: str) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(f"{where} is {loss}")
