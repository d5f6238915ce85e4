"""The training loop: steps, evaluations, checkpoints, and the best step's rows (Alg. 3)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hifi.arguments import check_number
from hifi.backbones.heads import describe, first_token_layer
from hifi.data.margins import standard_error
from hifi.data.run_warnings import (
    warn_of_falling_loss,
    warn_of_less_than_probe,
    warn_of_no_gain,
    warn_of_one_class,
)
from hifi.data.settings import CHECKPOINT_SECONDS
from hifi.errors import InvalidArgumentError, TrainingDivergedError
from hifi.training.batching import Indices, TrainingBatches
from hifi.training.checkpoint import Best, Checkpoint, save_checkpoint
from hifi.training.events import TrainingEvent
from hifi.training.forward import Forward, Scored, rank
from hifi.training.reproducibility import (
    own_random_state,
    random_states,
    seed_random,
    set_random_states,
)
from hifi.training.schedule import Schedule
from hifi.tuning.first_token import first_token_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.data.run_warnings import RunWarning
    from hifi.data.settings import Hyperparameters
    from hifi.tasks import Examples
    from hifi.tasks.report import ClassReport
    from hifi.training.events import Emitter, EventKind
    from hifi.training.forward import PlacedBatch
    from hifi.training.kept_states import KeptStates
    from hifi.training.preparation import TaskData
    from hifi.tuning.tuner import HeadTuner

MAX_GRADIENT_NORM = 1.0
_REMEDY = "lower the learning rate, or check the data for extreme values"


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """The folder and the interval of a run's checkpoints.

    Attributes:
        directory: None saves no checkpoints.
        seconds: the shortest time between two checkpoints.
    """

    directory: Path | None = None
    seconds: float = CHECKPOINT_SECONDS

    @classmethod
    def of(cls, directory: str | Path | None, *, seconds: float) -> CheckpointPlan:
        """Check a caller's arguments and build a plan from them.

        Raises:
            InvalidArgumentError: ``checkpoint_dir`` or ``checkpoint_seconds`` is invalid.
        """
        try:
            path = None if directory is None else Path(directory)
        except TypeError as error:
            raise InvalidArgumentError(
                "checkpoint_dir", value=directory, limit="a folder's path, or None to save none"
            ) from error
        shortest = check_number(
            "checkpoint_seconds",
            seconds,
            is_allowed=lambda seconds: seconds >= 0,
            limit="a finite number of at least 0",
        )
        return cls(directory=path, seconds=shortest)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of training.

    Attributes:
        best_step: the step whose rows the tuner now holds: the best on validation, else the last.
        metrics: of that step on validation; empty without a validation split.
        answers: of that step: numbers that turn logits into answers; empty as ``metrics`` are.
        test: of that step on test; empty without a test split.
        report: of that step's classes, on test if there is one, else on validation; None without
            both, and for a task without classes.
        train_seconds: time spent in steps over all attempts, without evaluations.
        samples_per_second: samples of all steps divided by that time.
        warnings: all of the run: the given ones, and those about the result.
    """

    best_step: int
    metrics: Mapping[str, float]
    train_seconds: float
    samples_per_second: float
    answers: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    report: ClassReport | None = None
    warnings: tuple[RunWarning, ...] = ()


class Trainer:
    """Train the parameters of a tuner.

    All randomness comes from the hyperparameters' seed, and the caller's random state is unchanged,
    so equal calls on one machine give equal bits.

    Args:
        tuner: of a model on its device, in its dtype.
        data: the encoded splits; without a validation split the last step counts as the best. The
            test split is scored once, with the best step's parameters.
        settings: the hyperparameters.
        start: step 0 of a new run, or the checkpoint to resume from.
        plan: where and how often to save checkpoints.
        emitter: sends events to the caller and receives requests to pause or cancel.
        kept: the states of the frozen layers; None runs the whole model in every step.
        warnings: those that are known before.
    """

    def __init__(
        self,
        tuner: HeadTuner,
        *,
        data: TaskData,
        settings: Hyperparameters,
        start: Checkpoint,
        plan: CheckpointPlan,
        emitter: Emitter,
        kept: KeptStates | None = None,
        warnings: tuple[RunWarning, ...] = (),
    ) -> None:
        self._warnings = warnings
        self._model = tuner.model
        self._device = tuner.model.device
        self._parameters = dict(tuner.named_parameters())
        self._optimizer = _make_optimizer(self._parameters, settings=settings)
        self._task = data.task
        self._forward = Forward(tuner.model, task=data.task, kept=kept)
        self._train = data.train
        self._validation = held_out = data.validation
        self._answers = 0 if held_out is None else data.task.count_answers(held_out.targets)
        self._test = data.test
        self._settings = settings
        self._batches = TrainingBatches(
            lengths=data.train.lengths, batch_size=settings.batch_size, seed=settings.seed
        )
        self._order: tuple[int, list[Indices]] = (-1, [])
        self._schedule = Schedule.of(
            settings, rows=len(data.train), hidden_size=describe(tuner.model).hidden_size
        )
        self._plan = plan
        self._emitter = emitter
        self._state = start

    def run(self) -> Outcome:
        """Train to the end, put the best step's parameters in the tuner, and emit ``finished``.

        If the caller has already requested a pause, only step 0 is saved. A run that has done all
        its steps is finished, even if its time is up.

        Raises:
            JobPaused: the caller requested it; the error has the checkpoint.
            JobTimedOut: the time is up; the error has the checkpoint.
            JobCancelled: the caller requested it.
            TrainingDivergedError: a loss or a trained weight is not finite.
            StorageError: a checkpoint cannot be written.
        """
        with own_random_state(self._device), first_token_only(self._model):
            self._restore()
            self._model.eval()
            if self._state.step == 0:
                self._save()
                self._evaluate_start()
            saved = time.monotonic()
            while not self._emitter.has_to_stop and not self._is_done():
                self._step()
                is_evaluated = self._schedule.is_evaluated_after(self._state.step)
                if is_evaluated and self._validation is not None:
                    self._evaluate(self._validation)
                is_due = time.monotonic() - saved >= self._plan.seconds
                is_scored_next = self._test is not None and self._is_done()
                if is_due or is_scored_next or self._emitter.has_to_stop:
                    self._save()
                    saved = time.monotonic()
        if self._emitter.is_pause_wanted or not self._is_done():
            self._stop_if_requested(f"after step {self._state.step}")
        return self._finish()

    def _stop_if_requested(self, place: str) -> None:
        kept = "" if self._emitter.checkpoint else "; nothing was saved without checkpoint_dir"
        self._emitter.stop_if_requested(f"{place}{kept}")

    def _is_done(self) -> bool:
        patience = self._settings.early_stopping_patience
        is_stale = patience is not None and self._state.evaluations_without_gain >= patience
        return self._state.step >= self._schedule.steps or is_stale

    def _step(self) -> None:
        """Run one optimizer step."""
        step = self._state.step
        started = time.perf_counter()
        rate = self._schedule.rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if not self._model.training:
            _set_training_mode(self._model)
        batch = self._next_batch()
        loss = self._task.training_loss(self._forward.logits(batch), batch.targets)
        value = loss.item()
        _check_finite(value, where=f"the training loss at step {step + 1}")
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters.values(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._state = replace(
            self._state,
            step=step + 1,
            samples=self._state.samples + len(batch.targets),
            losses=self._state.losses.add(value, step=step, total_steps=self._schedule.steps),
            train_seconds=self._state.train_seconds + time.perf_counter() - started,
        )
        self._emit_step(loss=value, rate=rate)

    def _emit_step(self, *, loss: float, rate: float) -> None:
        state = self._state
        left = self._schedule.steps - state.step
        event = replace(
            self._event("step", f"step {state.step} of {self._schedule.steps}: loss {loss:.4f}"),
            loss=loss,
            learning_rate=rate,
            samples_per_second=self._samples_per_second,
            eta_seconds=left * state.train_seconds / state.step,
        )
        self._emitter.emit(event)

    def _event(self, kind: EventKind, message: str) -> TrainingEvent:
        return TrainingEvent(
            kind=kind,
            message=message,
            step=self._state.step,
            total_steps=self._schedule.steps,
            epoch=self._state.step / self._schedule.steps_per_epoch,
        )

    @property
    def _samples_per_second(self) -> float:
        return self._state.samples / max(self._state.train_seconds, 1e-9)

    def _next_batch(self) -> PlacedBatch:
        epoch, index = divmod(self._state.step, self._schedule.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._batches.epoch(epoch))
        return self._forward.batch(self._train, self._order[1][index])

    def _evaluate_start(self) -> None:
        """Let the start count as a step, unless it is random: the result is not below it."""
        is_random = self._state.head_origin == "random"
        if self._validation is None or is_random or self._emitter.has_to_stop:
            return
        self._evaluate(self._validation)

    def _evaluate(self, examples: Examples) -> None:
        """Evaluate the validation split and keep the best step."""
        logits = self._read_logits(examples, split="validation")
        scored = Scored(self._task, logits, examples)
        _check_finite(scored.loss, where=f"the validation loss at step {self._state.step}")
        answers = self._task.fit_answers(scored.found, examples)
        task = self._task.with_answers(answers)
        self._keep_best(
            Best(
                step=self._state.step,
                metrics=scored.metrics(task),
                parameters={},  # copied only if it is the best
                answers=answers,
                only_answer=task.only_answer(scored.found, examples),
                report=task.report(scored.found, examples, split="validation"),
            )
        )

    def _read_logits(self, examples: Examples, *, split: str) -> Tensor:
        """Return the logits of a split."""

        def emit(number: int, total: int) -> None:
            message = f"{split} batch {number} of {total}"
            self._emitter.emit(self._event("evaluating", message))
            if split == "test" and self._emitter.is_pause_wanted:
                self._stop_if_requested("while the test split was scored")

        size = self._settings.batch_size
        return self._forward.over(examples, batch_size=size, on_batch=emit)

    def _keep_best(self, found: Best) -> None:
        """Keep the best step: by the metric, and among equals by the loss.

        One that is better than the start by no more than chance, and has a higher loss, is not
        kept: after many evaluations one of them always has the best metric.

        Args:
            found: this step, without its parameters.
        """
        state, metric, metrics = self._state, self._task.metric, found.metrics
        best, value = state.best, metrics[metric]
        is_gain = state.highest is None or value > state.highest
        state = replace(
            state,
            start=metrics if state.step == 0 else state.start,
            highest=value if is_gain else state.highest,
            evaluations_without_gain=0 if is_gain else state.evaluations_without_gain + 1,
        )
        is_best = best is None or rank(metrics, metric) > rank(best.metrics, metric)
        if is_best and self._is_above(state.start, metrics):
            copies = {name: value.detach().clone() for name, value in self._parameters.items()}
            state = replace(state, best=replace(found, parameters=copies))
        self._state = state
        event = self._event("evaluated", f"step {state.step}: {metric} {metrics[metric]:.4f}")
        self._emitter.emit(replace(event, metrics=metrics))

    def _is_above(self, start: Mapping[str, float] | None, metrics: Mapping[str, float]) -> bool:
        """Return whether an evaluation beats the start by more than chance, or has a lower loss."""
        if start is None or metrics is start or self._validation is None:
            return True
        gain = metrics[self._task.metric] - start[self._task.metric]
        return gain > standard_error(self._answers) or metrics["loss"] < start["loss"]

    def _save(self) -> None:
        """Write a checkpoint, if the plan has a folder for it."""
        if self._plan.directory is None:
            return
        whole = replace(
            self._state,
            parameters=self._parameters,
            optimizer={
                name: dict(self._optimizer.state[parameter])
                for name, parameter in self._parameters.items()
                if parameter in self._optimizer.state
            },
            random=random_states(self._device),
            event_number=self._emitter.number + 1,  # the event below
        )
        self._emitter.checkpoint = save_checkpoint(self._plan.directory, whole)
        self._emitter.emit(self._event("checkpoint", f"checkpoint at step {self._state.step}"))

    def _restore(self) -> None:
        """Restore parameters, optimizer and random states from the checkpoint."""
        self._load_parameters(self._state.parameters)
        if self._state.optimizer:
            names = {id(parameter): name for name, parameter in self._parameters.items()}
            groups = self._optimizer.param_groups
            order = [names[id(parameter)] for group in groups for parameter in group["params"]]
            entries = [self._state.optimizer[name] for name in order]
            whole = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**whole, "state": dict(enumerate(entries))})
        seed_random(self._settings.seed, device=self._device)
        set_random_states(self._state.random, device=self._device)
        self._state = replace(self._state, parameters={}, optimizer={}, random={})

    @torch.no_grad()
    def _load_parameters(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    def _finish(self) -> Outcome:
        state = self._state
        if state.best is not None:
            self._load_parameters(state.best.parameters)
        self._check_parameters()
        self._model.eval()
        test, report = self._score_test()
        outcome = Outcome(
            best_step=state.step if state.best is None else state.best.step,
            metrics={} if state.best is None else state.best.metrics,
            answers={} if state.best is None else state.best.answers,
            test=test,
            report=report,
            train_seconds=state.train_seconds,
            samples_per_second=self._samples_per_second,
            warnings=self._warnings + self._judge(),
        )
        is_early = state.step < self._schedule.steps
        verb = f"stopped early, after step {state.step}" if is_early else "finished"
        event = self._event("finished", f"{verb}; the best step is {outcome.best_step}")
        rate = outcome.samples_per_second
        self._emitter.emit(
            replace(
                event,
                metrics=outcome.metrics,
                samples_per_second=rate,
                warnings=outcome.warnings,
            )
        )
        return outcome

    def _score_test(self) -> tuple[Mapping[str, float], ClassReport | None]:
        """Score the test split, if there is one; return its metrics, and the best step's report."""
        best, examples = self._state.best, self._test
        if examples is None:
            return {}, None if best is None else best.report
        logits = self._read_logits(examples, split="test")
        task = self._task.with_answers({} if best is None else best.answers)
        scored = Scored(task, logits, examples)
        metrics, metric = scored.metrics(task), task.metric
        event = self._event("tested", f"test {metric} {metrics[metric]:.4f}")
        self._emitter.emit(replace(event, metrics=metrics))
        return metrics, task.report(scored.found, examples, split="test")

    def _judge(self) -> tuple[RunWarning, ...]:
        """Return what the caller should know about the result."""
        best, schedule, found = self._state.best, self._schedule, []
        probe, counted = self._state.yardsticks.get("probe"), self._task.counted
        if best is not None and best.only_answer is not None:
            found.append(
                warn_of_one_class(
                    best.only_answer,
                    learning_rate=schedule.learning_rate,
                    epochs=schedule.epochs,
                )
            )
        if best is not None and probe is not None and self._validation is not None:
            metric = self._task.metric
            found += warn_of_less_than_probe(
                metric,
                tuned=best.metrics[metric],
                probe=probe[metric],
                answers=self._answers,
                counted=counted,
            )
        if best is not None and best.step == 0:
            found.append(
                warn_of_no_gain(
                    learning_rate=schedule.learning_rate, answers=self._answers, counted=counted
                )
            )
        if self._state.losses.is_falling and (best is None or best.step == self._schedule.steps):
            found.append(warn_of_falling_loss(epochs=schedule.epochs))
        return tuple(found)

    def _check_parameters(self) -> None:
        """Raise if a parameter is not finite: no loss is computed after the last step."""
        for name, value in self._parameters.items():
            if not bool(value.isfinite().all()):
                raise TrainingDivergedError(
                    f"after step {self._state.step} {name} is not finite: {_REMEDY}"
                )


def _make_optimizer(
    parameters: Mapping[str, nn.Parameter], *, settings: Hyperparameters
) -> torch.optim.AdamW:
    """Create AdamW with weight decay for matrices, but not for biases and norms (one dimension)."""
    matrices = [value for value in parameters.values() if value.dim() > 1]
    others = [value for value in parameters.values() if value.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)  # each step sets its learning rate


def _set_training_mode(model: PreTrainedModel) -> None:
    """Enable dropout in the task head only.

    The frozen backbone stays in eval mode: dropout in it costs time and memory in every layer and
    regularises weights that are not trained. The block that ``first_token_only`` checks is set to
    training mode; it has no dropout of its own, only in a child.
    """
    backbone = set(model.base_model.modules())
    for module in model.modules():
        module.training = module not in backbone
    last = first_token_layer(model)
    if last is not None:
        model.get_submodule(last.output).training = True


def _check_finite(loss: float, *, where: str) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(f"{where} is {loss}: {_REMEDY}")
