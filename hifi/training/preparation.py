"""Prepare a fine-tune: encode the data and load the model with its task head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hifi.backbones.devices import resolve_attention, resolve_dtype
from hifi.backbones.heads import describe, task_head_names
from hifi.backbones.models import (
    LoadedModel,
    ModelSource,
    load_config,
    load_for_task,
    max_positions,
)
from hifi.backbones.resident import load_on_device
from hifi.canonical import canonical_json
from hifi.data.classes.contradictions import find_contradictions
from hifi.data.classes.names import describe_classes, find_alike
from hifi.data.classes.stored_head import StoredHead, fit_labels
from hifi.data.columns import has_named_integers, is_labelled, profile_split, read_texts
from hifi.data.profile import describe_left_out, describe_left_out_rows
from hifi.data.run_warnings import (
    RunWarning,
    refuse_to_keep,
    warn_of_classes,
    warn_of_contradictions,
    warn_of_few_rows,
    warn_of_labels_by_number,
    warn_of_replaced_head,
    warn_of_unlabelled_test,
)
from hifi.data.spec import IfLabelled
from hifi.data.splits import Source, has_split, load_split, named_lines, read_split
from hifi.errors import InvalidArgumentError, MissingColumnError
from hifi.selection.scoring import sample_indices
from hifi.tasks import Encoder, Examples, Task, TaskSpec, make_task
from hifi.tasks.base import digest_of, only_column
from hifi.training.batching import evaluation_batches

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.resident import Load
    from hifi.data.settings import Hyperparameters

_SHOWN_COLUMNS = 3
_SETTING_BYTES = 30  # longer settings are hashed, and not quoted in error messages


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """The encoded splits.

    Attributes:
        test: scored once, at the end; None without labelled rows.
        warnings: about the labels.
        notes: why columns were left out, by name.
        left_out: the training rows of a labelling tool that nobody accepted.
        has_named_integers: whether the training labels are integers with names (a ``ClassLabel``).
    """

    task: Task
    encoder: Encoder
    train: Examples
    validation: Examples | None
    test: Examples | None = None
    warnings: tuple[RunWarning, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
    has_named_integers: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the record of the task for predictions, as plain JSON."""
        return {**self.task.describe(), **self.encoder.metadata}


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A model on its device, and its data.

    Attributes:
        fingerprint: of the backbone as stored.
        kept_head: hash of the checkpoint's task head, which the fingerprint does not cover; None if
            the task head is fresh.
        warnings: about the labels and the task head.
    """

    source: ModelSource
    loaded: LoadedModel
    data: TaskData
    fingerprint: str
    kept_head: str | None = None
    warnings: tuple[RunWarning, ...] = ()

    @property
    def hidden_size(self) -> int:
        """The backbone's hidden size, D."""
        return describe(self.loaded.model).hidden_size

    def summary(self) -> str:
        """Describe the inferred task and the data in one line for people."""
        task, validation = self.data.task, self.data.validation
        names = [str(name) for name in task.labels or ()]
        classes = describe_classes(len(names), names=names, alike=find_alike(names))
        rows = f"{self.data.train.rows} rows"
        if validation is not None:
            rows += f", {validation.rows} validation rows"
        if self.data.test is not None:
            rows += f", {self.data.test.rows} test rows"
        if len(self.data.train) > self.data.train.rows:
            rows += f"; {len(self.data.train)} windows of training texts"
        model, left_out = self.loaded.model, self.data.left_out
        return (
            f"{task.type} of {' and '.join(task.inputs)} by {_shown(task.label_columns)}"
            + (f" ({classes})" if names else "")
            + f"; {rows}; {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
            + ("" if self.kept_head is None else "; keeps the model's own task head")
            + describe_left_out(self.data.notes)
            + (f"; {describe_left_out_rows(left_out, split='train')}" if left_out else "")
        )


def _shown(columns: Sequence[str]) -> str:
    """List columns, at most the first few."""
    more = ", …" if len(columns) > _SHOWN_COLUMNS else ""
    return f"{', '.join(columns[:_SHOWN_COLUMNS])}{more}"


def prepare(
    source: ModelSource,
    *,
    spec: TaskSpec,
    train: Source,
    validation: Source | None,
    test: Source | IfLabelled | None = None,
    settings: Hyperparameters,
    device: torch.device,
    load: Load = load_on_device,
) -> Prepared:
    """Read the data, load the model, and move it to its device and dtype.

    Args:
        source: the model.
        spec: the task; missing parts are inferred.
        train: the training split.
        validation: the validation split, if there is one.
        test: the test split, if there is one.
        settings: the hyperparameters.
        device: where the model will run.
        load: loads the model; by default every call loads a new one.

    Raises:
        InvalidArgumentError: ``max_length`` is more than the model reads, ``head_start`` keeps a
            task head that the model does not have, or ``class_weights`` do not fit the task.
        DataError, ModelError, TaskNotSupportedError, UnsupportedArchitectureError: the data or the
            model cannot be used.
    """
    dtype = resolve_dtype(settings.precision, device=device)
    config = load_config(source)
    own_head = StoredHead.of(config.id2label, problem_type=config.problem_type)
    may_keep = settings.head_start in ("auto", "keep")
    tested = test.source if isinstance(test, IfLabelled) else test
    with named_lines({"train": train, "validation": validation, "test": tested}):
        data = _load_data(
            source,
            config,
            spec=spec,
            train=train,
            validation=validation,
            test=test,
            settings=settings,
        )
    attention = resolve_attention(
        device=device, dtype=dtype, max_length=data.encoder.sequence_length
    )
    if data.task.declaration.logits == "choice":  # one logit, whatever the configuration says
        own_head = StoredHead(num_labels=data.task.num_labels, names=None)
    classes = data.task.classes
    fit = fit_labels(
        own_head,
        classes=classes,
        num_labels=data.task.num_labels,
        problem_type=data.task.declaration.problem_type,
    )
    new_model = partial(
        load_for_task,
        config=config,
        auto_class=data.task.auto_class,
        attention=attention,
        seed=settings.seed,
        head_rows=fit.rows if fit is not None and may_keep else None,
    )
    placed = load(source, new_model, device, dtype)
    limit = max_positions(placed.loaded.model)
    if limit is not None and settings.max_length > limit:
        raise InvalidArgumentError(
            "max_length", value=settings.max_length, limit=f"{source.name} reads {limit} tokens"
        )
    loaded, warnings = placed.loaded, data.warnings
    is_kept = loaded.head == "kept"
    if is_kept:
        if fit is not None and fit.names is not None:
            data = replace(data, task=replace(data.task, names=fit.names))
            _configure(loaded.model.config, data.task)
            warnings += (warn_of_labels_by_number(source.name, names=fit.names),)
    elif settings.head_start == "keep":
        replaced = own_head if loaded.head == "replaced" else None
        raise refuse_to_keep(
            source.name,
            head=replaced,
            classes=classes,
            has_named_integers=data.has_named_integers,
        )
    elif loaded.head == "replaced" and may_keep:
        warnings += (
            warn_of_replaced_head(
                source.name,
                head=own_head,
                classes=classes,
                has_named_integers=data.has_named_integers,
            ),
        )
    return Prepared(
        source=source,
        loaded=loaded,
        data=data,
        fingerprint=placed.fingerprint,
        kept_head=_head_digest(loaded) if is_kept else None,
        warnings=warnings,
    )


def _head_digest(loaded: LoadedModel) -> str:
    """Hash the values from which the task head starts."""
    names = task_head_names(loaded.model, extra=loaded.task_head_modules)
    values = (loaded.model.get_parameter(name).detach().float().cpu() for name in names)
    return digest_of([value.numpy() for value in values])


def _configure(config: PreTrainedConfig, task: Task) -> None:
    """Enter a task's settings in a model's configuration."""
    for name, value in task.settings().items():
        setattr(config, name, value)


def describe_job(
    ready: Prepared, *, settings: Hyperparameters, selection: Mapping[str, Any]
) -> dict[str, str]:
    """Return a description of a run, part by part; checkpoints with another one are refused.

    Args:
        ready: the encoded data and the model, not tuned yet.
        settings: the hyperparameters.
        selection: what the selection depends on, as plain JSON.

    Returns:
        Names to texts: settings as text, everything else as a hash. The test split is none of
        them: no step depends on it.
    """
    source, data, model = ready.source, ready.data, ready.loaded.model
    kept_head = [] if ready.kept_head is None else [data.task.names, ready.kept_head]
    job: dict[str, Any] = {
        "model": [source.name, source.revision, ready.fingerprint, str(model.dtype), *kept_head],
        "device": model.device.type,  # types differ in computed bits and random states
        "task": [data.describe(), data.task.classes],
        "train": data.train.digest(),
        "validation": None if data.validation is None else data.validation.digest(),
    }
    parts = {name: hashlib.sha256(canonical_json(value)).hexdigest() for name, value in job.items()}
    given = settings.describe(rows=len(data.train), hidden_size=ready.hidden_size)
    for name, value in {**selection, **given}.items():
        text = canonical_json(value)
        is_short = len(text) <= _SETTING_BYTES
        parts[name] = text.decode() if is_short else hashlib.sha256(text).hexdigest()
    return parts


def _load_data(
    source: ModelSource,
    config: PreTrainedConfig,
    *,
    spec: TaskSpec,
    train: Source,
    validation: Source | None,
    test: Source | IfLabelled | None,
    settings: Hyperparameters,
) -> TaskData:
    """Read and encode the splits, and add the task's settings to the configuration."""
    columns = spec.columns if spec.names_all_columns else None
    split = read_split(train, split="train", columns=columns)
    dataset, profile = split.dataset, split.profile
    task = make_task(spec, dataset, profile=profile)
    task.check_reads(source, config)
    _configure(config, task)
    encoder = task.load_encoder(source, config, max_length=settings.max_length)

    def encode(dataset: Dataset, split: str) -> Examples:
        targets = task.targets(dataset, split=split)
        return encoder.encode(dataset, split=split, targets=targets)

    examples, held_out = encode(dataset, "train"), None
    task = task.weighted(settings.class_weights, targets=examples.targets)
    warnings = _find_label_warnings(task, dataset, targets=examples.targets)
    has_names = has_named_integers(dataset, task.label_columns[0])
    if validation is not None:
        dataset = load_split(validation, split="validation", columns=task.columns)
        held_out = encode(dataset, "validation")
    tested, doubts = load_test(test, task)
    notes = {name: note for name, note in profile.notes.items() if name not in task.columns}
    return TaskData(
        task=task,
        encoder=encoder,
        train=examples,
        validation=held_out,
        test=None if tested is None else encode(tested, "test"),
        warnings=warnings + doubts,
        notes=notes,
        left_out=split.left_out,
        has_named_integers=has_names,
    )


def load_test(
    test: Source | IfLabelled | None, task: Task
) -> tuple[Dataset | None, tuple[RunWarning, ...]]:
    """Load the test split with the columns of a task.

    Args:
        test: the split. One in ``IfLabelled`` is read only if it exists and has labels.
        task: of the training split.

    Returns:
        None if it is not to be scored, with a warning if it has no labels.

    Raises:
        DataError: it cannot be read, or a column is missing.
    """
    if test is None:
        return None, ()
    if not isinstance(test, IfLabelled):
        return load_split(test, split="test", columns=task.columns), ()
    if not has_split(test.source, split="test"):
        return None, ()
    try:
        labels = load_split(test.source, split="test", columns=task.label_columns)
    except MissingColumnError as error:
        return None, (warn_of_unlabelled_test(error.column or ""),)
    known = (task.classes or ()) if isinstance(task.label, str) else ()
    for column in task.label_columns:
        if not is_labelled(labels, column, known=known):
            return None, (warn_of_unlabelled_test(column),)
    return load_split(test.source, split="test", columns=task.columns), ()


def _find_label_warnings(
    task: Task, dataset: Dataset, *, targets: Tensor
) -> tuple[RunWarning, ...]:
    """Return the warnings about the labels of the training split.

    An upload's profile gives the first of them as well, before the job.
    """
    if not task.classes:
        return ()
    warnings: tuple[RunWarning, ...] = ()
    if isinstance(task.label, str) and not task.declaration.has_tags:
        profile = profile_split(dataset.select_columns([task.label]))
        warnings = warn_of_classes(profile.columns[0], rows=len(dataset))
    if any(warning.code == "many_classes" for warning in warnings):
        return warnings
    warnings += warn_of_few_rows(
        task.label,
        counts=task.count_rows(targets),
        counted="entities" if task.declaration.has_tags else "rows",
    )
    layout = task.declaration.layouts[0]
    if [each.use for each in layout.inputs] != ["text"] or layout.label.use != "label":
        return warnings
    texts = [read_texts(dataset, column, split="train") for column in task.inputs]
    found = find_contradictions(zip(*texts, strict=True), targets.numpy())
    return warnings + warn_of_contradictions(only_column(task.label), found, rows=len(dataset))


def calibration_batches(
    ready: Prepared, *, n: int, settings: Hyperparameters
) -> Iterator[Mapping[str, Tensor]]:
    """Iterate over ``n`` calibration samples of the training split, drawn by the seed (Alg. 1).

    Yields:
        Batches as ``select_heads`` takes them, on the model's device, the longest first, with the
        task's ``targets``, which no model reads.
    """
    train, model = ready.data.train, ready.loaded.model
    drawn = np.array(sample_indices(len(train), n=n, seed=settings.seed))
    for chosen in evaluation_batches(train.lengths[drawn], batch_size=settings.batch_size):
        batch = train.batch(drawn[chosen]).to(model.device, dtype=model.dtype)
        yield {**batch.inputs, "targets": batch.targets}


def calibration_loss(task: Task) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
    """Return the loss of a task for gradient scores, of batches of :func:`calibration_batches`."""

    def loss(output: Any, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401 - of any model
        return task.loss(task.logits_of(output), batch["targets"])

    return loss
