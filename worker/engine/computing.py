"""The engine's work: run a job with ``hifi.finetune``, and describe backbones."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch

from hifi.backbones.devices import resolve_device
from hifi.backbones.models import resolve_model
from hifi.backbones.resident import ResidentBackbones
from hifi.errors import (
    AmbiguousTaskError,
    CaptureError,
    CheckpointError,
    ConvergenceError,
    DataError,
    HifiError,
    InvalidArgumentError,
    JobCancelled,
    JobPaused,
    JobTimedOut,
    ModelError,
    StorageError,
    TaskNotSupportedError,
    TrainingDivergedError,
    UnsupportedArchitectureError,
    shorten,
)
from hifi.memory import machine_memory, memory_limit
from hifi.tasks import get_task, task_types
from hifi.training.checkpoint import checkpoint_folder
from hifi.training.events import Control, TrainingEvent
from hifi.training.finetuning import FinetuneResult, finetune
from hifi.tuning.states import StatePlaces
from store.jobs.spec import job_warning, spec_field
from worker.engine.descriptions import describe_backbone
from worker.engine.messages import (
    TIME_LIMIT_EXCEEDED,
    Described,
    Done,
    EngineEvent,
    Failed,
    Message,
    RunJob,
    Stopped,
    StopRequest,
)
from worker.engine.results import write_artifacts
from worker.engine.translation import finetune_arguments
from worker.memory import is_out_of_memory, limit_host_memory

if TYPE_CHECKING:
    from hifi.selection.head_selection import HeadSelection

_CODES: dict[type[HifiError], str] = {
    AmbiguousTaskError: "task_ambiguous",
    CaptureError: "head_outputs_not_finite",
    CheckpointError: "checkpoint_invalid",
    ConvergenceError: "selection_did_not_converge",
    DataError: "dataset_invalid",
    InvalidArgumentError: "invalid_argument",
    JobTimedOut: TIME_LIMIT_EXCEEDED,
    ModelError: "model_invalid",
    StorageError: "worker_storage",
    TaskNotSupportedError: "task_not_supported",
    TrainingDivergedError: "training_diverged",
    UnsupportedArchitectureError: "architecture_not_supported",
}
# Another try may succeed: with more disk, or without the checkpoint.
_TRANSIENT = (StorageError, CheckpointError)
_MOST_FAULT = 500  # characters
_RESIDENT_SHARE = 0.25  # of all memory, for unused backbones; chosen, not measured
_MEMORY_SHARE = 0.5  # of the machine's memory: inference and the other processes have the rest
_log = structlog.get_logger(__name__)
_CONTROLS: dict[StopRequest, Control] = {"pause": Control.PAUSE, "cancel": Control.CANCEL}


def make_resident_backbones(device: str, *, memory: int | None = None) -> ResidentBackbones:
    """Limit this process's memory; create the cache of backbones that stay in it between jobs.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory: the most bytes of host memory, as for :func:`limit_host_memory`.
    """
    where = resolve_device(device)
    most = limit_host_memory(where, most=memory, share=_MEMORY_SHARE)
    if where.type == "cuda":
        room = torch.cuda.get_device_properties(where).total_memory
    else:
        room = machine_memory() if most is None else most
    return ResidentBackbones(max_bytes=int(room * _RESIDENT_SHARE))


def release_memory() -> None:
    """Release the memory of a finished job."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute(
    command: RunJob,
    *,
    backbones: ResidentBackbones,
    send: Callable[[Message], None],
    stop_request: Callable[[], StopRequest | None],
) -> Message:
    """Run a job and return its last message: done, failed or stopped.

    It sends every event, and then acts on the current stop request.
    """

    def on_event(event: TrainingEvent) -> Control:
        send(_engine_event(command, event))
        requested = stop_request()
        return Control.CONTINUE if requested is None else _CONTROLS[requested]

    try:
        arguments = finetune_arguments(
            command.spec, data=command.data, model=command.model, revision=command.revision
        )
        # Of the time that the job may run in all, earlier attempts have used a part.
        arguments["max_seconds"] = command.max_seconds
        result = finetune(
            **arguments,
            device=command.device,
            checkpoint_dir=command.checkpoints,
            checkpoint_seconds=command.checkpoint_seconds,
            backbones=backbones,
            state_places=StatePlaces(
                memory_bytes=command.state_memory_bytes, folder=command.checkpoints
            ),
            on_event=on_event,
        )
        return _finish(command, result)
    except JobPaused:
        return Stopped(run=command.run, stop_request="pause")
    except JobCancelled:
        return Stopped(run=command.run, stop_request="cancel")
    except Exception as error:  # noqa: BLE001 - reported to the worker; the engine goes on
        return _failed(command, error)


def _engine_event(command: RunJob, event: TrainingEvent) -> EngineEvent:
    return EngineEvent(
        run=command.run,
        kind=event.kind,
        step=event.step,
        total_steps=event.total_steps,
        loss=event.loss,
        learning_rate=event.learning_rate,
        metrics=dict(event.metrics),
        samples_per_second=event.samples_per_second,
        eta_seconds=event.eta_seconds,
        text=event.message,
        selection=None if event.selection is None else _describe(event.selection, event),
        checkpoint=_checkpoint_files(command, event) if event.kind == "checkpoint" else (),
        yardsticks=_plain(event.yardsticks),
        warnings=[job_warning(warning) for warning in event.warnings],
    )


def _plain(yardsticks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: dict(metrics) for name, metrics in yardsticks.items()}


def _checkpoint_files(command: RunJob, event: TrainingEvent) -> list[str]:
    directory = Path(command.checkpoints)
    return sorted(map(str, checkpoint_folder(directory, step=event.step).iterdir()))


def _describe(selection: HeadSelection, event: TrainingEvent) -> dict[str, Any]:
    return {
        **selection.to_dict(),
        "trainable_parameters": event.trainable_parameters,
        "fraction": event.fraction,
        "head_dim": event.head_dim,
    }


def _finish(command: RunJob, result: FinetuneResult) -> Done:
    """Write the artifacts."""
    source = resolve_model(command.model, revision=command.revision)
    artifacts = write_artifacts(result.delta, model_path=source.path, folder=Path(command.output))
    return Done(
        run=command.run,
        result={
            "metrics": dict(result.metrics),
            "test": dict(result.test) or None,
            "report": None if result.report is None else result.report.to_json(),
            "yardsticks": _plain(result.yardsticks) or None,
            "best_step": result.best_step,
            "train_seconds": result.train_seconds,
            "selection_seconds": result.selection_seconds,
            "samples_per_second": result.samples_per_second,
        },
        artifacts={encoding: str(path) for encoding, path in artifacts.items()},
    )


def _failed(command: RunJob, error: Exception) -> Failed:
    run = command.run
    if is_out_of_memory(error):
        text = _describe_lack_of_memory(error)
        return Failed(run=run, code="out_of_memory", text=text, param="training.batch_size")
    if _is_full(error):
        text = f"the worker's disk is full: {_one_line(error)}"
        return Failed(run=run, code="disk_full", text=text, is_lasting=False)
    if not isinstance(error, HifiError):
        # Log the place only: the message may quote a row of the data.
        place = traceback.format_tb(error.__traceback__)
        _log.error("job failed unexpectedly", error=type(error).__name__, traceback="".join(place))
        text = f"unexpected {type(error).__name__}: a bug, or a broken installation"
        return Failed(run=run, code="internal_error", text=text, is_lasting=False)
    return Failed(
        run=run,
        code=next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "failed"),
        text=str(error),
        param=_param(error),
        is_lasting=not isinstance(error, _TRANSIENT),
    )


def _is_full(error: BaseException | None) -> bool:
    """Return whether the error or one of its causes is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _param(error: HifiError) -> str | None:
    """Return the field of the job spec at fault."""
    if isinstance(error, InvalidArgumentError):
        return spec_field(error.param.partition(".")[0])
    if isinstance(error, AmbiguousTaskError):
        return "task.type" if error.param == "task" else f"task.{error.param}"
    return "dataset" if isinstance(error, DataError) else None


def _describe_lack_of_memory(error: Exception) -> str:
    remedy = "try a smaller training.batch_size or training.max_length, or upload fewer rows"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device has not enough memory for this job: {remedy}"
    limit = memory_limit()
    most = "its machine has" if limit is None else f"the {limit} bytes that it may use"
    return f"the worker's engine needs more memory for this job than {most}: {remedy}"


def load_task_types() -> None:
    """Import all task types: their metrics take as long as most of a first description."""
    for name in task_types():
        get_task(name)


def describe_all(backbones: Mapping[str, str]) -> Iterator[Described]:
    """Describe backbones, id to folder, one by one; report each that cannot be used and go on."""
    for identifier, path in backbones.items():
        try:
            description = describe_backbone(identifier, Path(path))
        except Exception as error:  # noqa: BLE001 - a broken configuration can raise anything
            yield Described(id=identifier, error=_fault(error, path=path))
        else:
            yield Described(id=identifier, description=vars(description))


def _fault(error: Exception, *, path: str) -> str:
    """Return why a backbone cannot be used, in words that callers of the API may read."""
    text = _one_line(error).replace(path, Path(path).name)
    known = text if isinstance(error, HifiError) else f"unexpected {type(error).__name__}: {text}"
    return shorten(known, characters=_MOST_FAULT)
