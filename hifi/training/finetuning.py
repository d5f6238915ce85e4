"""Fine-tune a backbone's selected heads and task head on one task (Alg. 3), in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.backbones.devices import resolve_device
from hifi.backbones.heads import describe
from hifi.backbones.models import resolve_model
from hifi.backbones.resident import Load, ResidentBackbones, load_on_device
from hifi.data.settings import (
    CHECKPOINT_SECONDS,
    Hyperparameters,
    Precision,
    Scoring,
    Strategy,
    Teleport,
    declared,
)
from hifi.errors import BackboneMismatchError, InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from hifi.tasks import TaskSpec
from hifi.training.checkpoint import Checkpoint, check_job, load_checkpoint
from hifi.training.events import Emitter, OnEvent, TrainingEvent
from hifi.training.preparation import Prepared, calibration_batches, describe_job, prepare
from hifi.training.reproducibility import reproducible_kernels
from hifi.training.trainer import CheckpointPlan, Trainer
from hifi.tuning.tuner import HeadTuner

if TYPE_CHECKING:
    import torch

    from hifi.data.splits import Source
    from hifi.deltas.delta import HeadDelta


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneResult:
    """The result of a fine-tune.

    Attributes:
        delta: tuned rows and task head of the best step, with the settings for predictions.
        selection: the tuned heads and their scores.
        metrics: all metrics of the task, and ``loss``, of ``delta`` on the validation split; empty
            without one.
        best_step: the step of ``delta``: the best on validation, else the last.
        train_seconds: time spent in training steps, without evaluations and loading.
        selection_seconds: time spent in selection.
        samples_per_second: training samples over ``train_seconds``.
        trainable_parameters: number of trained weights: rows of the tuned heads, and the task head.
        fraction: trained weights over all weights of the model, including the task head.
    """

    delta: HeadDelta
    selection: HeadSelection
    metrics: Mapping[str, float]
    best_step: int
    train_seconds: float
    selection_seconds: float
    samples_per_second: float
    trainable_parameters: int
    fraction: float


def finetune(
    *,
    model: str | Path,
    train: Source,
    validation: Source | None = None,
    task: str | Mapping[str, Any] | TaskSpec | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    image: str | None = None,
    metric: str | None = None,
    k: int = Scoring.k,
    xi: float | None = Scoring.xi,
    damping: float = Scoring.damping,
    n_samples: int | None = Scoring.n_samples,
    strategy: Strategy = Scoring.strategy,
    teleport: Teleport = Scoring.teleport,
    selection: HeadSelection | None = None,
    epochs: int = Hyperparameters.epochs,
    learning_rate: float = Hyperparameters.learning_rate,
    batch_size: int = Hyperparameters.batch_size,
    max_length: int = Hyperparameters.max_length,
    warmup_ratio: float = Hyperparameters.warmup_ratio,
    weight_decay: float = Hyperparameters.weight_decay,
    seed: int = Hyperparameters.seed,
    precision: Precision = Hyperparameters.precision,
    early_stopping_patience: int | None = Hyperparameters.early_stopping_patience,
    device: str | torch.device = "auto",
    revision: str | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    backbones: ResidentBackbones | None = None,
    on_event: OnEvent | None = None,
) -> FinetuneResult:
    """Select the heads that matter for a task, tune them and a task head, return a head delta.

    Equal calls on one machine (device, thread count, library versions) return deltas that are equal
    byte for byte, even if one was stopped and resumed, or found the backbone in memory.

    Args:
        model: a folder, ``all-MiniLM-L6-v2``, or a hub id.
        train: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file, ``{"hub": id, "config": …}``,
            a ``datasets.Dataset``, a list of rows, a dict of columns or a pandas DataFrame.
        validation: in the same forms; evaluated after every epoch to keep the best step. Without
            one the last step is kept.
        task: the type (``classification``, ``regression``, ``image-classification``), or a
            mapping with ``type, text, label, image, metric``. Missing parts are inferred from the
            columns; if these are ambiguous, the call fails.
        text: one or two text columns.
        label: the column of classes or numbers.
        image: the image column.
        metric: chooses the best step: ``accuracy`` (default), ``f1`` (of the last of two classes,
            else the mean over the classes) or ``matthews``; for regression ``pearson`` (default)
            or ``spearman``.
        k: heads per layer to select (key-value groups if keys are grouped).
        xi: the share ξ of Eq. (2), 0 < ξ < 1; 0.9 by default.
        damping: d of Eq. (10), 0 ≤ d < 1.
        n_samples: calibration samples; by default 300, or all rows if there are fewer.
        strategy: ``layer-wise``, or ``mid-top`` for the upper half of the layers only.
        teleport: ``information``, or ``uniform`` as Eq. (10) is printed.
        selection: the heads to tune; if it records a backbone, it must be this one. Nothing is
            scored then, and the six arguments before this one have no effect.
        epochs: passes over the training split.
        learning_rate: the highest; after warm-up it decreases linearly.
        batch_size: samples per step.
        max_length: the most tokens of a text, or of a pair.
        warmup_ratio: share of the steps in which the learning rate increases.
        weight_decay: of AdamW; not for biases and norms.
        seed: of the task head, the calibration samples, the order of the data and dropout. The
            caller's random state does not change.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 if the device supports it.
            Tuned rows and task head are always float32.
        early_stopping_patience: stop after so many evaluations without gain on ``validation``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        revision: branch, tag or commit of a hub id.
        checkpoint_dir: a folder for this run only; created if missing. The run resumes from a
            checkpoint in it. The folder is not removed at the end: call
            ``hifi.training.checkpoint.remove_checkpoints`` when the result is saved.
        checkpoint_seconds: time between checkpoints; one more is saved after selection and at a
            pause.
        backbones: keeps the backbone in memory for the next call with the same object; None reads
            it from disk. The backbone is restored even if this call fails.
        on_event: called with every TrainingEvent, at least once per step and calibration batch;
            returns a Control, or None to continue.

    Returns:
        The head delta with selection, metrics and timings.

    Raises:
        InvalidArgumentError: an argument is outside its range.
        BackboneMismatchError: ``selection`` records another backbone.
        DataError: a split cannot be used; the error has row and column.
        TaskNotSupportedError: the task type is unknown or not supported yet.
        ModelError: the model cannot be found, or must not be loaded.
        UnsupportedArchitectureError: the model's architecture is not supported.
        CaptureError: the head outputs cannot be observed, or are not finite.
        ConvergenceError: PageRank does not converge.
        CheckpointError: the checkpoint is damaged or of another run.
        TrainingDivergedError: a loss or a trained weight is not finite.
        StorageError: a checkpoint cannot be written.
        JobPaused: ``on_event`` returned PAUSE; call again with the same arguments to resume.
        JobCancelled: ``on_event`` returned CANCEL.

    Example:
        >>> result = finetune(
        ...     model="all-MiniLM-L6-v2", train="train.jsonl", validation="validation.jsonl"
        ... )
        >>> result.delta.save("task.safetensors")

    Source: Gui & Xiao, "HiFi", Findings of ACL 2023, Algorithm 3.
    """
    arguments = locals()  # every declared setting is an argument of the same name
    settings = Hyperparameters(**{name: arguments[name] for name in declared(Hyperparameters)})
    scoring = Scoring(**{name: arguments[name] for name in declared(Scoring)})
    given = _check_given(selection)
    _check_patience(settings, validation=validation)
    plan = CheckpointPlan.of(checkpoint_dir, seconds=checkpoint_seconds)
    spec = TaskSpec.of(task, text=text, label=label, image=image, metric=metric)
    where = resolve_device(device)
    found = None if plan.directory is None else load_checkpoint(plan.directory)
    emitter = Emitter(on_event)
    if found is not None:
        emitter.checkpoint, emitter.number = found[0], found[1].event_number
    _emit(emitter, TrainingEvent(kind="loading", message=f"loading the data and {model}"))
    source = resolve_model(model, revision=revision)
    with reproducible_kernels(where), _lending(backbones) as load:
        ready = prepare(
            source,
            spec=spec,
            train=train,
            validation=validation,
            settings=settings,
            device=where,
            load=load,
        )
        _emit(emitter, TrainingEvent(kind="loaded", message=ready.summary()))
        start = _start(ready, settings, scoring=scoring, given=given, found=found, emitter=emitter)
        return _tune(ready, settings, start=start, plan=plan, emitter=emitter)


def _lending(backbones: ResidentBackbones | None) -> AbstractContextManager[Load]:
    return nullcontext(load_on_device) if backbones is None else backbones.job()


def _check_given(selection: object) -> HeadSelection | None:
    """Check a caller's selection like one from a file; its heads may be in any order."""
    if selection is None:
        return None
    if not isinstance(selection, HeadSelection):
        limit = "a HeadSelection, or None to score the heads"
        raise InvalidArgumentError("selection", value=selection, limit=limit)
    return HeadSelection.from_dict(selection.to_dict())


def _check_patience(settings: Hyperparameters, *, validation: Source | None) -> None:
    if settings.early_stopping_patience is not None and validation is None:
        raise InvalidArgumentError(
            "early_stopping_patience",
            value=settings.early_stopping_patience,
            limit="only with a validation split",
        )


def _emit(emitter: Emitter, event: TrainingEvent) -> None:
    emitter.emit(event)
    emitter.stop_if_paused("paused while loading; there was nothing new to save")


def _start(
    ready: Prepared,
    settings: Hyperparameters,
    *,
    scoring: Scoring,
    given: HeadSelection | None,
    found: tuple[Path, Checkpoint] | None,
    emitter: Emitter,
) -> Checkpoint:
    """Return the checkpoint to resume from; without one select heads and return step 0."""
    rows = len(ready.data.train)
    wanted = scoring.describe(rows=rows) if given is None else given.to_dict()
    job = describe_job(ready, settings=settings, selection=wanted)
    if found is not None:
        path, checkpoint = found
        check_job(path, checkpoint, job=job)
        message = f"resuming from the checkpoint of step {checkpoint.step}"
        if not checkpoint.step:
            message = "resuming after the selection; no step was saved yet"
        emitter.emit(TrainingEvent(kind="resumed", message=message, step=checkpoint.step))
        return checkpoint
    _check_backbone(ready, selection=given)
    started = time.perf_counter()
    selection = given or _select(ready, settings, scoring=scoring, emitter=emitter)
    seconds = time.perf_counter() - started
    return Checkpoint(
        job=job, selection=selection, step=0, parameters={}, selection_seconds=seconds
    )


def _check_backbone(ready: Prepared, *, selection: HeadSelection | None) -> None:
    scored = None if selection is None else selection.fingerprint
    if scored not in (None, ready.fingerprint):
        raise BackboneMismatchError(
            f"the selection is for a backbone whose fingerprint is {scored}, but that of "
            f"{ready.source.name} is {ready.fingerprint}: score its own heads with `hifi select`, "
            "or leave out selection="
        )


def _tune(
    ready: Prepared,
    settings: Hyperparameters,
    *,
    start: Checkpoint,
    plan: CheckpointPlan,
    emitter: Emitter,
) -> FinetuneResult:
    """Train from the checkpoint, and return the head delta."""
    model, selection = ready.loaded.model, start.selection
    weights = sum(parameter.numel() for parameter in model.parameters())
    tuner = HeadTuner(
        model,
        selection,
        task_head=ready.loaded.task_head_modules,
        fingerprint=ready.fingerprint,
    )
    try:
        trained = sum(parameter.numel() for parameter in tuner.parameters())
        if not start.parameters:  # a new run, which has not reported its heads yet
            emitter.emit(
                TrainingEvent(
                    kind="selected",
                    message=f"selected {len(selection.heads)} heads",
                    selection=selection,
                    trainable_parameters=trained,
                    fraction=trained / weights,
                    head_dim=describe(model).head_dim,
                )
            )
        trainer = Trainer(
            tuner, data=ready.data, settings=settings, start=start, plan=plan, emitter=emitter
        )
        outcome = trainer.run()
        delta = tuner.delta(
            model=ready.source.name,
            revision=ready.source.revision,
            task=ready.data.describe(),
            labels=ready.data.task.classes,
            training=settings.describe(),
        )
    finally:
        tuner.undo()  # other calls may share the backbone
    return FinetuneResult(
        delta=delta,
        selection=selection,
        metrics=outcome.metrics,
        best_step=outcome.best_step,
        train_seconds=outcome.train_seconds,
        selection_seconds=start.selection_seconds,
        samples_per_second=outcome.samples_per_second,
        trainable_parameters=trained,
        fraction=trained / weights,
    )


def _select(
    ready: Prepared, settings: Hyperparameters, *, scoring: Scoring, emitter: Emitter
) -> HeadSelection:
    def emit(seen: int, total: int) -> None:
        message = f"scored {seen} of {total} samples"
        emitter.emit(TrainingEvent(kind="selecting", message=message, step=seen, total_steps=total))
        emitter.stop_if_paused("paused during selection; the next call starts it over")

    return select_prepared(ready, settings=settings, scoring=scoring, on_batch=emit)


def select_prepared(
    ready: Prepared,
    *,
    settings: Hyperparameters,
    scoring: Scoring,
    on_batch: Callable[[int, int], None] | None = None,
) -> HeadSelection:
    """Select heads for a prepared task, as :func:`finetune` with the same arguments does.

    Args:
        ready: the encoded data and the model.
        settings: ``seed`` draws the calibration samples, ``batch_size`` is that of a forward pass.
        scoring: how heads are scored and selected.
        on_batch: called after each batch with the samples seen so far and with n.

    Returns:
        The selection, with the backbone's fingerprint.

    Raises:
        InvalidArgumentError, CaptureError, ConvergenceError: as in ``select_heads``.
    """
    n = scoring.count_samples(rows=len(ready.data.train))
    selection = select_heads(
        ready.loaded.model,
        calibration_batches(ready, n=n, settings=settings),
        k=scoring.k,
        xi=scoring.xi,
        damping=scoring.damping,
        strategy=scoring.strategy,
        teleport=scoring.teleport,
        on_batch=None if on_batch is None else lambda seen: on_batch(seen, n),
    )
    return replace(selection, fingerprint=ready.fingerprint)
