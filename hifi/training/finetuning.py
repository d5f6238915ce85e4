"""Fine-tune a backbone's selected heads and task head on one task (Alg. 3), in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.backbones.devices import computed_in_float32, resolve_device
from hifi.backbones.heads import describe
from hifi.backbones.models import resolve_model
from hifi.backbones.resident import Load, ResidentBackbones, load_on_device
from hifi.data.presets import Preset, fill_from_preset
from hifi.data.settings import (
    CHECKPOINT_SECONDS,
    GRADIENT_SCORES,
    HeadStart,
    Hyperparameters,
    Precision,
    Score,
    Scoring,
    Teleport,
    declared,
)
from hifi.errors import BackboneMismatchError, InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from hifi.tasks import TaskSpec
from hifi.training.checkpoint import Checkpoint, HeadOrigin, check_job, load_checkpoint
from hifi.training.events import Emitter, OnEvent, TrainingEvent
from hifi.training.head_start import StartedHead, start_head
from hifi.training.kept_states import keeping_states
from hifi.training.preparation import (
    Prepared,
    calibration_batches,
    calibration_loss,
    describe_job,
    prepare,
)
from hifi.training.reproducibility import reproducible_kernels
from hifi.training.trainer import CheckpointPlan, Trainer
from hifi.tuning.prefix import check_frozen
from hifi.tuning.states import StatePlaces
from hifi.tuning.tuner import HeadTuner

if TYPE_CHECKING:
    import torch

    from hifi.data.allotments import Strategy
    from hifi.data.classes.weights import ClassWeights
    from hifi.data.run_warnings import RunWarning
    from hifi.data.spec import IfLabelled
    from hifi.data.splits import Source
    from hifi.data.training_defaults import LearningRate
    from hifi.deltas.delta import HeadDelta
    from hifi.tasks.report import ClassReport
    from hifi.training.kept_states import KeptStates

_ORIGINS: Mapping[HeadOrigin, str] = {
    "kept": "the model's own weights",
    "probe": "the linear probe",
    "random": "random weights",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneResult:
    """The result of a fine-tune.

    Attributes:
        delta: tuned rows and task head of the best step, with the settings for predictions.
        selection: the tuned heads and their scores.
        metrics: all metrics of the task, and ``loss``, of ``delta`` on the validation split; empty
            without one.
        test: all metrics of the task, and ``loss``, of ``delta`` on the test split, which is scored
            once and chooses nothing; empty without one.
        report: precision, recall and F1 of each class and the confusion matrix, of ``delta`` on the
            test split, else on the validation split; its ``split`` says which. There is no matrix
            of labels of which a row can have several. None without both splits, and for a
            regression.
        yardsticks: the validation metrics of what ``delta`` is compared with, by name:
            ``majority``, the most frequent class or the mean; ``probe``, a linear model on the
            frozen states that the task head reads; ``untuned``, the model before the fine-tune, if
            its own task head was kept. Empty without a validation split.
        best_step: the step of ``delta``: the best on validation (by the metric, and among equals by
            the loss), else the last. It is 0 if no evaluation beat the start, a probe or a kept
            task head: by more than chance in the metric (0.5/√n), or with a lower loss at no worse
            a metric.
        train_seconds: time spent in training steps, without evaluations and loading.
        selection_seconds: time spent in selection.
        samples_per_second: training samples over ``train_seconds``.
        trainable_parameters: number of trained weights: rows of the tuned heads, and the task head.
        fraction: trained weights over all weights of the model, including the task head.
        warnings: what the caller should know about the data, the task head and the result.
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
    test: Mapping[str, float] = field(default_factory=dict)
    report: ClassReport | None = None
    yardsticks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()


def finetune(
    *,
    model: str | Path,
    train: Source,
    validation: Source | None = None,
    test: Source | IfLabelled | None = None,
    task: str | Mapping[str, Any] | TaskSpec | None = None,
    text: str | Sequence[str] | None = None,
    label: str | Sequence[str] | None = None,
    image: str | None = None,
    metric: str | None = None,
    preset: Preset | None = None,
    score: Score = Scoring.score,
    k: int | None = Scoring.k,
    budget: int | None = Scoring.budget,
    xi: float | None = Scoring.xi,
    damping: float = Scoring.damping,
    n_samples: int | None = Scoring.n_samples,
    strategy: Strategy = Scoring.strategy,
    teleport: Teleport = Scoring.teleport,
    selection: HeadSelection | None = None,
    epochs: int | None = Hyperparameters.epochs,
    learning_rate: LearningRate = Hyperparameters.learning_rate,
    batch_size: int = Hyperparameters.batch_size,
    max_length: int = Hyperparameters.max_length,
    warmup_ratio: float = Hyperparameters.warmup_ratio,
    weight_decay: float = Hyperparameters.weight_decay,
    seed: int = Hyperparameters.seed,
    precision: Precision = Hyperparameters.precision,
    early_stopping_patience: int | None = Hyperparameters.early_stopping_patience,
    head_start: HeadStart = Hyperparameters.head_start,
    class_weights: ClassWeights | None = Hyperparameters.class_weights,
    max_seconds: float | None = Hyperparameters.max_seconds,
    device: str | torch.device = "auto",
    revision: str | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    backbones: ResidentBackbones | None = None,
    state_places: StatePlaces | None = None,
    on_event: OnEvent | None = None,
) -> FinetuneResult:
    """Select the heads that matter for a task, tune them and a task head, return a head delta.

    A task head of the checkpoint is kept if its labels are the task's: the same names, or integers
    0..n-1 for its n labels, which answers then call by its names (a warning says which). The names
    of a ``ClassLabel`` are the task's labels, and not its integers. Otherwise the task head
    starts from a linear probe: a regularised linear model on the frozen states that its last layer
    reads. The probe is also what the result is compared with (``yardsticks``).

    Equal calls on one machine (device, thread count, library versions) return deltas that are equal
    byte for byte, even if one was stopped and resumed, or found the backbone in memory.

    Args:
        model: a folder, ``all-MiniLM-L6-v2``, or a hub id.
        train: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file,
            ``{"hub": id, "config": …}``, a ``datasets.Dataset``, a list of rows, a dict of columns
            or a pandas DataFrame.
        validation: in the same forms; evaluated after each epoch (of more than 20, after every
            few), and before the first step unless the task head starts at random, to keep the best
            step. Without one the last step is kept.
        test: in the same forms; scored once, at the end, with the best step's weights. No step and
            no byte of the head delta depends on it. ``IfLabelled(source)`` of ``hifi.data.spec``
            leaves out a split without labels, with a warning.
        task: the type (``classification``, ``token-classification``, ``question-answering``, …), or
            a mapping with the attributes of a ``TaskSpec`` as entries: ``type``, the columns by
            their fields, ``metric``, …. Missing parts are inferred from the columns; if these are
            ambiguous, the call fails.
        text: one or two text columns.
        label: the column of classes, of lists of labels or of numbers; or several columns of 0 and
            1, one for each label.
        image: the image column.
        metric: chooses the best step: ``accuracy`` (default), ``f1`` (of the last of two classes,
            else the mean over the classes) or ``matthews``; for several labels ``micro_f1``
            (default), ``macro_f1``, ``mean_average_precision`` or ``subset_accuracy``; for
            regression ``pearson`` (default) or ``spearman``.
        preset: ``paper`` trains as published what is None or ``auto`` of ``head_start`` (random),
            ``epochs`` (3) and ``learning_rate`` (2e-4). The defaults of scoring are the paper's.
        score: what ranks the heads: ``pagerank``, the paper's importance; ``information``,
            ``gradient``, ``gradient-ratio``, ``output-norm`` or ``random``, as in ``select_heads``.
            A gradient is that of the task's loss, in float32 whatever the precision.
        k: heads per layer to select (key-value groups if keys are grouped); 3 by default, and none
            with a budget.
        budget: heads to select in the whole model; with strategy ``budget``.
        xi: the share ξ of Eq. (2), 0 < ξ < 1; 0.9 by default.
        damping: d of Eq. (10), 0 ≤ d < 1.
        n_samples: calibration samples; by default 300, or all rows if there are fewer.
        strategy: ``layer-wise``; ``mid-top`` for the upper half of the layers only; or ``budget``
            for the best heads wherever they are.
        teleport: ``information``, or ``uniform`` as Eq. (10) is printed.
        selection: the heads to tune, at least one; if it records a backbone, it must be this one.
            Nothing is scored then, and the arguments from ``score`` to ``teleport`` have no effect.
        epochs: passes over the training split; by default 3, or enough for 100 steps.
        learning_rate: the highest; after warm-up it decreases linearly. ``auto`` is 0.4 over the
            backbone's hidden size: 0.001 for MiniLM.
        batch_size: samples per step.
        max_length: the most tokens of a text, or of a pair.
        warmup_ratio: share of the steps in which the learning rate increases.
        weight_decay: of AdamW; not for biases and norms.
        seed: of a new task head, the rows and the split of the linear probe, the calibration
            samples, score ``random``, the order of the data and dropout. The caller's random state
            does not change.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 if the device supports it.
            Tuned rows and task head are always float32.
        early_stopping_patience: stop after so many evaluations without gain on ``validation``.
        head_start: ``keep`` the checkpoint's task head, which must fit the labels; start from the
            ``probe``; or at ``random``. ``auto`` keeps a task head that fits, else probes.
        class_weights: of the training loss alone; metrics, validation loss, linear probe and
            gradient scores are unweighted. ``balanced`` for w_c = n / (C n_c), as scikit-learn has
            it, or ``{label: weight}``, 1 for labels that are left out. Only the ratios of weights
            matter. Of several labels it is the weight of the rows that have one, beside 1 for the
            others; ``balanced`` is the others divided by those that have it.
        max_seconds: stop with a JobTimedOut after so many seconds of this call, at the end of a
            step; by default never. The head delta does not depend on it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        revision: branch, tag or commit of a hub id.
        checkpoint_dir: a folder for this run only; created if missing. The run resumes from a
            checkpoint in it. The folder is not removed at the end: call
            ``hifi.training.checkpoint.remove_checkpoints`` when the result is saved.
        checkpoint_seconds: time between checkpoints; one more is saved after selection, at a pause
            and when ``max_seconds`` are up.
        backbones: keeps the backbone in memory for the next call with the same object; None reads
            it from disk. The backbone is restored even if this call fails.
        state_places: where hidden states are kept between epochs: with no tuned head in the lowest
            layers, these are computed once per sample. By default an eighth of the memory that
            this process may use, at most 1 GiB, then half of the free disk, except its last GiB,
            in a file without a name in ``checkpoint_dir`` or else in the system's temporary folder.
            The head delta does not depend on it.
        on_event: called with every TrainingEvent, at least once per step and calibration batch;
            returns a Control, or None to continue.

    Returns:
        The head delta with selection, metrics, timings and warnings.

    Raises:
        InvalidArgumentError: an argument is outside its range, the model has no task head to
            ``keep``, or ``class_weights`` are given for a regression or an unknown label.
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
        JobTimedOut: ``max_seconds`` are up; call again with more of them to resume.
        JobCancelled: ``on_event`` returned CANCEL.

    Example:
        >>> result = finetune(
        ...     model="all-MiniLM-L6-v2", train="train.jsonl", validation="validation.jsonl"
        ... )
        >>> result.delta.save("task.safetensors")

    Source: Gui & Xiao, "HiFi", Findings of ACL 2023, Algorithm 3.
    """
    # Every declared setting is an argument of the same name.
    arguments = fill_from_preset(locals(), preset=preset)
    settings = Hyperparameters(**{name: arguments[name] for name in declared(Hyperparameters)})
    scoring = Scoring(**{name: arguments[name] for name in declared(Scoring)})
    given = _check_given(selection)
    _check_patience(settings, validation=validation)
    plan = CheckpointPlan.of(checkpoint_dir, seconds=checkpoint_seconds)
    spec = TaskSpec.of(task, text=text, label=label, image=image, metric=metric)
    where = resolve_device(device)
    found = None if plan.directory is None else load_checkpoint(plan.directory)
    places = _check_places(state_places, plan=plan)
    emitter = Emitter(on_event, max_seconds=settings.max_seconds)
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
            test=test,
            settings=settings,
            device=where,
            load=load,
        )
        known = ready.warnings if found is None else ready.warnings + found[1].warnings
        loaded = TrainingEvent(kind="loaded", message=ready.summary(), warnings=known)
        _emit(emitter, loaded)
        selection = given if found is None else found[1].selection
        first = _first_layer(ready, scoring=scoring, selection=selection)
        with keeping_states(ready, first=first, settings=settings, places=places) as kept:
            start = _start(
                ready,
                settings,
                scoring=scoring,
                given=given,
                found=found,
                kept=kept,
                emitter=emitter,
            )
            return _tune(
                ready, settings, start=start, plan=plan, places=places, kept=kept, emitter=emitter
            )


def check_heads(ready: Prepared, *, scoring: Scoring) -> None:
    """Refuse a number of heads that the model does not have, before the head start's passes.

    Raises:
        InvalidArgumentError: fewer than one head, or more than there are.
    """
    backbone = describe(ready.loaded.model)
    scoring.allotment.fitted(num_layers=backbone.num_layers, num_heads=backbone.num_heads)


def _lending(backbones: ResidentBackbones | None) -> AbstractContextManager[Load]:
    return nullcontext(load_on_device) if backbones is None else backbones.job()


def _check_given(selection: object) -> HeadSelection | None:
    """Check a caller's selection like one from a file; its heads may be in any order."""
    if selection is None:
        return None
    if not isinstance(selection, HeadSelection):
        limit = "a HeadSelection, or None to score the heads"
        raise InvalidArgumentError("selection", value=selection, limit=limit)
    if not selection.heads:
        raise InvalidArgumentError("selection", value=(), limit="at least one head")
    return HeadSelection.from_dict(selection.to_dict())


def _check_places(places: object, *, plan: CheckpointPlan) -> StatePlaces:
    if places is None:
        return StatePlaces(folder=plan.directory)
    if not isinstance(places, StatePlaces):
        limit = "StatePlaces, or None for the default"
        raise InvalidArgumentError("state_places", value=places, limit=limit)
    return places


def _check_patience(settings: Hyperparameters, *, validation: Source | None) -> None:
    if settings.early_stopping_patience is not None and validation is None:
        raise InvalidArgumentError(
            "early_stopping_patience",
            value=settings.early_stopping_patience,
            limit="only with a validation split",
        )


def _first_layer(ready: Prepared, *, scoring: Scoring, selection: HeadSelection | None) -> int:
    """Return the lowest layer with a tuned head, or that may get one if none are selected yet.

    Raises:
        InvalidArgumentError: as :func:`check_heads`.
    """
    if selection is not None:
        return selection.heads[0].layer
    check_heads(ready, scoring=scoring)
    num_layers = describe(ready.loaded.model).num_layers
    return scoring.allotment.pools(num_layers=num_layers)[0].start


def _emit(emitter: Emitter, event: TrainingEvent) -> None:
    emitter.emit(event)
    emitter.stop_if_requested("while loading; there was nothing new to save")


def _start(
    ready: Prepared,
    settings: Hyperparameters,
    *,
    scoring: Scoring,
    given: HeadSelection | None,
    found: tuple[Path, Checkpoint] | None,
    kept: KeptStates | None,
    emitter: Emitter,
) -> Checkpoint:
    """Return the checkpoint to resume from; without one start the task head, select, return step 0.

    A selection comes last, so that a score may use the task head.
    """
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
    head = _start_head(ready, settings, kept=kept, emitter=emitter)
    started = time.perf_counter()
    selection = given or _select(ready, settings, scoring=scoring, emitter=emitter)
    seconds = time.perf_counter() - started
    return Checkpoint(
        job=job,
        selection=selection,
        step=0,
        head_origin=_head_origin(ready, head),
        parameters=head.parameters,
        selection_seconds=seconds,
        yardsticks=head.yardsticks,
        warnings=head.warnings,
    )


def _start_head(
    ready: Prepared, settings: Hyperparameters, *, kept: KeptStates | None, emitter: Emitter
) -> StartedHead:
    def emit(batch: int, total: int) -> None:
        message = f"step {batch} of {total} of the linear probe"
        emitter.emit(TrainingEvent(kind="probing", message=message, step=batch, total_steps=total))
        emitter.stop_if_requested("during the linear probe; the next call starts it over")

    head = start_head(ready, settings=settings, kept=kept, on_batch=emit)
    if head.yardsticks or head.parameters or head.warnings:
        emitter.emit(
            TrainingEvent(
                kind="yardsticks",
                message=_describe_start(ready, head),
                yardsticks=head.yardsticks,
                warnings=ready.warnings + head.warnings,
            )
        )
    return head


def _head_origin(ready: Prepared, head: StartedHead) -> HeadOrigin:
    if ready.kept_head is not None:
        return "kept"
    return "probe" if head.parameters else "random"


def _describe_start(ready: Prepared, head: StartedHead) -> str:
    """Describe in one line for people where the task head starts, and what it has to beat."""
    origin = _ORIGINS[_head_origin(ready, head)]
    metric = ready.data.task.metric
    parts = [f"{name} {metrics[metric]:.4f}" for name, metrics in head.yardsticks.items()]
    compared = f"; {metric} to compare with: {', '.join(parts)}" if parts else ""
    return f"the task head starts from {origin}{compared}"


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
    places: StatePlaces,
    kept: KeptStates | None,
    emitter: Emitter,
) -> FinetuneResult:
    """Train from the checkpoint, and return the head delta.

    States that nobody has kept yet are kept from here on, now that the heads are known.
    """
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
        if not start.event_number:  # a new run, which has not reported its heads yet
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
        first = selection.heads[0].layer
        with (
            keeping_states(ready, first=first, settings=settings, places=places)
            if kept is None
            else nullcontext(kept)
        ) as states:
            if states is not None:
                check_frozen(model, first=first)
            trainer = Trainer(
                tuner,
                data=ready.data,
                settings=settings,
                start=start,
                plan=plan,
                emitter=emitter,
                kept=states,
                warnings=ready.warnings + start.warnings,
            )
            outcome = trainer.run()
        delta = tuner.delta(
            model=ready.source.name,
            revision=ready.source.revision,
            task={**ready.data.describe(), **outcome.answers},
            labels=ready.data.task.labels,
            training=settings.describe(rows=len(ready.data.train), hidden_size=ready.hidden_size),
        )
    finally:
        tuner.undo()  # other calls may share the backbone
    return FinetuneResult(
        delta=delta,
        selection=selection,
        metrics=outcome.metrics,
        test=outcome.test,
        report=outcome.report,
        best_step=outcome.best_step,
        train_seconds=outcome.train_seconds,
        selection_seconds=start.selection_seconds,
        samples_per_second=outcome.samples_per_second,
        trainable_parameters=trained,
        fraction=trained / weights,
        yardsticks=start.yardsticks,
        warnings=outcome.warnings,
    )


def _select(
    ready: Prepared, settings: Hyperparameters, *, scoring: Scoring, emitter: Emitter
) -> HeadSelection:
    def emit(seen: int, total: int) -> None:
        message = f"scored {seen} of {total} samples"
        emitter.emit(TrainingEvent(kind="selecting", message=message, step=seen, total_steps=total))
        emitter.stop_if_requested("during selection; the next call starts it over")

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
        settings: ``seed`` draws the calibration samples and random scores, ``batch_size`` is that
            of a forward pass.
        scoring: how heads are scored and selected.
        on_batch: called after each batch with the samples seen so far and with n.

    Returns:
        The selection, with the backbone's fingerprint.

    Raises:
        InvalidArgumentError, CaptureError, ConvergenceError: as in ``select_heads``.
    """
    n, model = scoring.count_samples(rows=len(ready.data.train)), ready.loaded.model
    task = ready.data.task
    texts = task.num_logits if task.declaration.logits == "choice" else 1  # of a sample
    is_gradient = scoring.score in GRADIENT_SCORES
    with computed_in_float32(model) if is_gradient else nullcontext():
        selection = select_heads(
            model,
            calibration_batches(ready, n=n, settings=settings),
            score=scoring.score,
            k=scoring.k,
            budget=scoring.budget,
            xi=scoring.xi,
            damping=scoring.damping,
            strategy=scoring.strategy,
            teleport=scoring.teleport,
            seed=settings.seed,
            loss=calibration_loss(task),
            on_batch=None if on_batch is None else lambda seen: on_batch(seen // texts, n),
        )
    return replace(selection, fingerprint=ready.fingerprint, n_samples=n)
