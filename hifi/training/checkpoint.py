"""Checkpoints of a fine-tune: folders of safetensors and JSON from which it resumes exactly.

A checkpoint is the folder ``step-00000120`` with ``tensors.safetensors`` and ``state.json``. It is
written atomically and replaces the previous one. It contains no pickle; opening it executes
nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import load, save_file

from hifi.canonical import canonical_json, parse_json_object
from hifi.data.run_warnings import RunWarning
from hifi.errors import CheckpointError, StorageError
from hifi.files import TEMPORARY_PREFIX, write_directory_atomically
from hifi.selection.head_selection import HeadSelection
from hifi.tasks.report import ClassReport
from hifi.training.convergence import LossThirds

if TYPE_CHECKING:
    from torch import Tensor

HeadOrigin = Literal["kept", "probe", "random"]
FORMAT_VERSION = 5
_NAME = re.compile(r"step-\d{8,}")
_HASH = re.compile(r"[0-9a-f]{64}")
_TENSORS = "tensors.safetensors"
# Of working files that nobody asked for, whatever the umask is; it decides about results.
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_STATE = "state.json"
_PLAIN = (  # fields of a checkpoint that its JSON holds under their own names
    "step",
    "head_origin",
    "start",
    "highest",
    "evaluations_without_gain",
    "event_number",
    "train_seconds",
    "selection_seconds",
    "samples",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """The best step so far.

    Attributes:
        step: optimizer steps done.
        metrics: of the validation split.
        parameters: tuned rows and task head, by name.
        answers: numbers that turn its logits into answers, as ``Task.fit_answers`` chose them.
        only_answer: the class that every validation row got although their labels differ, if so.
        report: of the classes on the validation split; None for a task without classes.
    """

    step: int
    metrics: Mapping[str, float]
    parameters: Mapping[str, Tensor]
    answers: Mapping[str, float] = field(default_factory=dict)
    only_answer: str | None = None
    report: ClassReport | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The full state from which a run resumes.

    The step determines the learning rate and the position in the data (epoch and batch).

    Attributes:
        job: describes what is computed, part by part (settings as text, model and data as hashes);
            only an equal job can resume.
        selection: the heads that are tuned.
        step: optimizer steps done.
        head_origin: where the task head started: it was ``kept``, or from the ``probe``, or
            ``random``.
        parameters: tuned rows and task head, by name; before the first step only those with which
            a run starts instead of the model's.
        optimizer: the optimizer's tensors of each parameter.
        random: the state of each random generator, uint8.
        best: the best step so far; None before the first evaluation.
        start: validation metrics of step 0; None if it was not evaluated.
        highest: the highest metric of all evaluations, whether its step was kept or not.
        evaluations_without_gain: since the highest metric.
        event_number: of the event that announces this checkpoint.
        train_seconds: time spent in steps, without evaluations.
        selection_seconds: time spent in selection.
        samples: number of samples seen in steps.
        losses: of the steps, in sums.
        yardsticks: what the metrics are compared with, by name.
        warnings: about the start of the task head.
    """

    job: Mapping[str, str]
    selection: HeadSelection
    step: int
    head_origin: HeadOrigin
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    random: Mapping[str, Tensor] = field(default_factory=dict)
    best: Best | None = None
    start: Mapping[str, float] | None = None
    highest: float | None = None
    evaluations_without_gain: int = 0
    event_number: int = 0
    train_seconds: float = 0.0
    selection_seconds: float = 0.0
    samples: int = 0
    losses: LossThirds = field(default_factory=LossThirds)
    yardsticks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, for this user only, and remove the older ones.

    Args:
        directory: holds the checkpoints of one run; created if missing, for this user only.
        checkpoint: tensors may be on any device.

    Returns:
        The checkpoint's folder. An existing checkpoint of that step is kept: the same job at the
        same step has the same checkpoint.

    Raises:
        StorageError: the checkpoint cannot be written; the previous one still exists.
    """
    try:
        directory.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder {directory}: {error.strerror}") from error
    path = checkpoint_folder(directory, step=checkpoint.step)
    if not path.exists():
        with write_directory_atomically(path) as folder:
            tensors = {
                name: value.to("cpu", copy=True).contiguous()  # safetensors refuses shared memory
                for name, value in _flatten(checkpoint)
            }
            save_file(tensors, folder / _TENSORS)
            digest = hashlib.sha256((folder / _TENSORS).read_bytes()).hexdigest()
            state = _state(checkpoint, digest=digest)
            own = hashlib.sha256(canonical_json(state)).hexdigest()
            (folder / _STATE).write_bytes(canonical_json({"sha256": own, "state": state}))
            for file in folder.iterdir():
                file.chmod(_FILE_MODE)
            folder.chmod(_FOLDER_MODE)
    _remove_all(directory, but=path)
    return path


def checkpoint_folder(directory: Path, *, step: int) -> Path:
    """Return the folder of a step's checkpoint in the folder of its run's checkpoints."""
    return directory / f"step-{step:08d}"


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a run whose result is saved, and their folder if it is then empty.

    Args:
        directory: of the checkpoints; files that cannot be removed are left.
    """
    if directory.is_dir():
        _remove_all(directory, but=None)
        with suppress(OSError):  # not empty, or not allowed
            directory.rmdir()


def _remove_all(directory: Path, *, but: Path | None) -> None:
    for path in directory.iterdir():
        is_leftover = path.name.startswith(TEMPORARY_PREFIX)  # unfinished, of a killed run
        if path != but and (is_leftover or _NAME.fullmatch(path.name)):
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(directory: Path) -> tuple[Path, Checkpoint] | None:
    """Read the newest checkpoint, of any job.

    Args:
        directory: holds the checkpoints of one run, or none, or does not exist.

    Returns:
        The folder and the content, tensors on the CPU; None if there is no checkpoint.

    Raises:
        CheckpointError: the newest checkpoint has another format or is damaged. It is written
            atomically, so damage means a disk fault or a manual change; older ones are not tried.
    """
    path = _newest(directory)
    if path is None:
        return None
    state = _read_state(path / _STATE)
    version = state["format_version"]
    if version != FORMAT_VERSION:
        raise _foreign(path, f"format version {version}, this library has {FORMAT_VERSION}")
    return path, _assemble(state, _read_tensors(path / _TENSORS, digest=state["tensors_sha256"]))


def check_job(path: Path, checkpoint: Checkpoint, *, job: Mapping[str, str]) -> None:
    """Raise if a checkpoint is of another job.

    Args:
        path: the checkpoint's folder, for the error.
        checkpoint: its content.
        job: identifies the run that wants to resume, part by part.

    Raises:
        CheckpointError: the jobs differ; the message names the parts that do.
    """
    theirs = checkpoint.job
    different = [part for part in {**job, **theirs} if theirs.get(part) != job.get(part)]
    if different:
        named = [_difference(part, theirs.get(part), job.get(part)) for part in different]
        raise _foreign(path, ", ".join(named))


def _difference(part: str, theirs: str | None, ours: str | None) -> str:
    if any(value is None or _HASH.fullmatch(value) for value in (theirs, ours)):
        return f"another {part}"
    return f"{part} {theirs}, not {ours}"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        entry = parse_json_object(path.read_text(encoding="utf-8"))
        state: dict[str, Any] = entry["state"]
        is_sound = entry["sha256"] == hashlib.sha256(canonical_json(state)).hexdigest()
    except (OSError, ValueError, LookupError) as error:
        raise _damaged(path, str(error)) from error
    if not is_sound:
        raise _damaged(path, "it does not match its own hash")
    return state


def _read_tensors(path: Path, *, digest: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path, f"it does not match the hash in {_STATE}")
    return load(data)


def _newest(directory: Path) -> Path | None:
    if not directory.is_dir():
        return None
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint file {path} is damaged: {reason}; remove its folder to start over"
    )


def _foreign(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is of another run ({difference}); use an empty folder to start "
        "over, or the arguments with which that run was started"
    )


def _flatten(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its name ``group/…``."""
    for name, value in checkpoint.parameters.items():
        yield f"parameters/{name}", value.detach()
    for name, entries in checkpoint.optimizer.items():
        for entry, value in entries.items():
            yield f"optimizer/{entry}/{name}", value.detach()
    for name, value in checkpoint.random.items():
        yield f"random/{name}", value
    if checkpoint.best is not None:
        for name, value in checkpoint.best.parameters.items():
            yield f"best/{name}", value.detach()


def _state(checkpoint: Checkpoint, *, digest: str) -> dict[str, Any]:
    best = checkpoint.best
    return {
        "format_version": FORMAT_VERSION,
        "job": dict(checkpoint.job),
        "selection": checkpoint.selection.to_dict(),
        "best": None
        if best is None
        else {
            "step": best.step,
            "metrics": dict(best.metrics),
            "answers": dict(best.answers),
            "only_answer": best.only_answer,
            "report": None if best.report is None else best.report.to_json(),
        },
        "losses": checkpoint.losses.to_json(),
        "yardsticks": {name: dict(metrics) for name, metrics in checkpoint.yardsticks.items()},
        "warnings": [warning.to_json() for warning in checkpoint.warnings],
        **{name: getattr(checkpoint, name) for name in _PLAIN},
        "tensors_sha256": digest,
    }


def _assemble(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "random": {}, "best": {}}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if group == "optimizer":
            entry, _, name = name.partition("/")
            optimizer.setdefault(name, {})[entry] = value
        else:
            groups[group][name] = value
    best = state["best"]
    return Checkpoint(
        job=state["job"],
        selection=HeadSelection.from_dict(state["selection"]),
        parameters=groups["parameters"],
        optimizer=optimizer,
        random=groups["random"],
        best=None if best is None else _assemble_best(best, parameters=groups["best"]),
        losses=LossThirds.of(state["losses"]),
        yardsticks=state["yardsticks"],
        warnings=tuple(RunWarning(**warning) for warning in state["warnings"]),
        **{name: state[name] for name in _PLAIN},
    )


def _assemble_best(entry: Mapping[str, Any], *, parameters: Mapping[str, Tensor]) -> Best:
    report = entry["report"]
    read = None if report is None else ClassReport.from_json(report)
    return Best(**{**entry, "parameters": parameters, "report": read})
