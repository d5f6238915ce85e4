"""One claimed job, from claim to end: what the engine tells goes to the store, and wishes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
import structlog

from store.database import OUTAGES
from store.errors import ArtifactStorageError, LeaseLostError
from store.leases import Lease, Progress, WorkEvent
from store.states import JobStatus
from store.tables import Dataset
from worker.engine import EngineDiedError
from worker.job_files import JobFiles
from worker.messages import Control, Done, Failed, Message, RunJob, Stopped, Told, Wish
from worker.translation import (
    file_data,
    finetune_arguments,
    heads_document,
    hub_data,
    is_told_step,
)

if TYPE_CHECKING:
    from store.claims import ClaimedJob
    from worker.workshop import Workshop

T = TypeVar("T")
_REPORT_SECONDS = 0.25  # how soon a wish of the owner is heard, and progress seen
_LOADING_SECONDS = 1800.0  # a big model from a slow disk says nothing for long
_STORAGE_SECONDS = 600.0  # how long an artifact store may be away
_PAUSE_SECONDS = 2.0  # between two tries
_LONG_PAUSE_SECONDS = 30.0
_ORDER = (JobStatus.VALIDATING, JobStatus.SELECTING, JobStatus.TRAINING)
_WISHES: dict[JobStatus, Wish] = {JobStatus.PAUSING: "pause", JobStatus.CANCELLING: "cancel"}
_QUIET_PHASES = frozenset({"loading", "writing"})
_log = structlog.get_logger(__name__)


def run_job(job: ClaimedJob, *, workshop: Workshop) -> None:
    """Run a claimed job until it has ended, was stopped, or is another worker's.

    Args:
        job: from ``claim_next``.
        workshop: the worker's tools.
    """
    log = _log.bind(job=job.id, tenant=job.tenant_id, fence=job.fence)
    files = JobFiles(workshop.folder / job.id, storage=workshop.storage, tenant_id=job.tenant_id)
    run = _Run(job, workshop=workshop, files=files)
    log.info("job claimed", model=job.model, attempt=job.attempt)
    try:
        status = run.work()
        log.info("job left", status=str(status))
    except LeaseLostError:
        log.warning("lease lost: the job is another worker's now")
        workshop.engine.kill()
    finally:
        files.remove()


class _Run:
    """One job in the hands of this worker."""

    def __init__(self, job: ClaimedJob, *, workshop: Workshop, files: JobFiles) -> None:
        self._job = job
        self._workshop = workshop
        self._files = files
        seconds = workshop.settings.lease_seconds
        self._lease = Lease(workshop.database, job.id, fence=job.fence, seconds=seconds)
        self._status = JobStatus.VALIDATING
        self._progress = Progress(phase="loading")
        self._events: list[WorkEvent] = []
        self._checkpoint: tuple[int, Path] | None = None  # not stored yet
        self._full_since: float | None = None  # the disk
        self._wish: Wish | None = None  # that the engine was told
        self._reported = self._heard = time.monotonic()

    def work(self) -> JobStatus:
        """Work until the job is not ours any more; give the state in which we leave it.

        Raises:
            LeaseLostError: it was taken from us.
        """
        arguments: dict[str, Any] | None = None
        while not self._workshop.stopping.is_set():
            try:
                arguments = arguments or self._arguments()
                status = self._settle(self._compute(arguments))
            except (ArtifactStorageError, OSError) as error:
                status = self._count_crash("artifact_storage", str(error))
            except EngineDiedError as error:
                _log.error("engine died", job=self._job.id, reason=str(error))
                self._workshop.engine.kill()
                status = self._count_crash(error.code, str(error))
            if not status.is_leased:
                return status
            self._wait(_PAUSE_SECONDS)
        return self._hand_back()

    def _arguments(self) -> dict[str, Any]:
        """Bring the job's files here; give what ``finetune`` is to be called with."""
        job, settings = self._job, self._workshop.settings
        if job.checkpoint is not None:
            checkpoint = job.checkpoint
            self._patiently(lambda: self._files.fetch_checkpoint(checkpoint))
        backbone = self._workshop.backbones.get(job.model)
        return {
            **finetune_arguments(
                job.spec,
                data=self._data(),
                model=job.model if backbone is None else str(backbone),
                revision=job.revision,
            ),
            "device": settings.device,
            "checkpoint_dir": str(self._files.checkpoints),
            "checkpoint_seconds": settings.checkpoint_seconds,
        }

    def _data(self) -> dict[str, Any]:
        if self._job.dataset_id is None:
            return hub_data(self._job.spec["dataset"])
        splits = self._insist(self._splits)
        return file_data(self._patiently(lambda: self._files.fetch_splits(splits)))

    def _splits(self) -> Mapping[str, Any]:
        with self._workshop.database.read() as session:
            query = sa.select(Dataset.splits).where(Dataset.id == self._job.dataset_id)
            splits: Mapping[str, Any] = session.scalars(query).one()
            return splits

    def _compute(self, arguments: Mapping[str, Any]) -> Done | Failed | Stopped:
        """Let the engine run the job; give its last word.

        Raises:
            EngineDiedError: it died, or fell silent.
            LeaseLostError: the job was taken from us.
        """
        engine = self._workshop.engine
        engine.start()
        self._wish = None
        self._progress = Progress(phase="loading")
        self._heard = time.monotonic()
        engine.send(RunJob(arguments=arguments, output=str(self._files.output)))
        while True:
            message = engine.receive(timeout=_REPORT_SECONDS / 5)
            if isinstance(message, Done | Failed | Stopped):
                return message
            self._take(message)
            self._heartbeat()

    def _take(self, message: Message | None) -> None:
        if isinstance(message, Told):
            self._heard = time.monotonic()
            self._hear(message)
            return
        silence = time.monotonic() - self._heard
        is_quiet_phase = self._progress.phase in _QUIET_PHASES
        stall = self._workshop.settings.engine_stall_seconds
        if silence > (max(_LOADING_SECONDS, stall) if is_quiet_phase else stall):
            raise EngineDiedError(
                f"the engine made no progress for {silence:.0f} seconds", code="engine_stalled"
            )

    def _hear(self, told: Told) -> None:
        """Note what the engine tells; what must not be lost goes to the store at once."""
        if told.kind == "loaded":
            self._note("message", told, step=0)
        elif told.kind == "selecting":
            self._advance(JobStatus.SELECTING, "scoring the heads")
            self._progress = _progress("selecting", told)
        elif told.kind == "selected":
            self._keep_selection(told)
            self._advance(JobStatus.TRAINING, told.text)
        elif told.kind == "resumed":
            self._advance(JobStatus.TRAINING, told.text)
        elif told.kind == "step":
            self._hear_step(told)
        elif told.kind == "evaluating":
            self._progress = _progress("evaluating", told)
        elif told.kind == "evaluated":
            self._note("metrics", told, data={"step": told.step, **told.metrics})
        elif told.kind == "checkpoint" and told.checkpoint is not None:
            self._checkpoint = told.step, Path(told.checkpoint)
            self._keep_checkpoint()
        elif told.kind == "finished":
            self._progress = _progress("writing", told)
            self._note("message", told)

    def _hear_step(self, told: Told) -> None:
        speed = (told.samples_per_second or 0.0) / self._job.spec["training"]["batch_size"]
        self._progress = _progress("training", told, steps_per_second=speed)
        if is_told_step(told):
            data = {
                "step": told.step,
                "total_steps": told.total_steps,
                "loss": told.loss,
                "learning_rate": told.learning_rate,
                "samples_per_second": told.samples_per_second,
            }
            self._note("step", told, data=data)

    def _note(
        self,
        type: str,  # noqa: A002 - the contract's name
        told: Told,
        *,
        step: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        number = told.step if step is None else step
        self._events.append(
            WorkEvent(type=type, message=told.text, step=number, data=dict(data or {}))
        )

    def _keep_selection(self, told: Told) -> None:
        if told.selection is None:
            raise ValueError("the engine told of a selection without one")
        selection, heads = heads_document(
            told.selection, job_id=self._job.id, model=self._job.model
        )
        self._insist(lambda: self._lease.keep_selection(selection=selection, heads=heads))
        self._note("selection", told, step=0, data=selection)

    def _keep_checkpoint(self) -> None:
        """Store the newest checkpoint, if the store takes it; else the next heartbeat tries."""
        if self._checkpoint is None:
            return
        step, folder = self._checkpoint
        try:
            blobs = self._files.put_checkpoint(folder)
        except FileNotFoundError:  # a newer one has replaced it, and will be told
            self._checkpoint = None
            return
        except (ArtifactStorageError, OSError) as error:
            _log.warning("checkpoint not stored", job=self._job.id, step=step, reason=str(error))
            return
        self._checkpoint = self._full_since = None
        self._flush()  # the events before it first: nobody will tell them again
        self._insist(lambda: self._lease.keep_checkpoint(step=step, files=blobs))

    def _heartbeat(self) -> None:
        """Report now and then, and pass on what the owner or the worker's end asks for."""
        if time.monotonic() - self._reported < _REPORT_SECONDS:
            return
        try:
            self._report()
        except OUTAGES as error:
            _log.warning("database away", job=self._job.id, reason=type(error).__name__)
            self._reported = time.monotonic() + _PAUSE_SECONDS
            return
        self._keep_checkpoint()
        default: Wish | None = "pause" if self._workshop.stopping.is_set() else None
        wish = _WISHES.get(self._status, default)
        if wish is not None and wish != self._wish:
            self._workshop.engine.send(Control(wish=wish))
            self._wish = wish

    def _report(self) -> None:
        events = list(self._events)
        self._status = self._lease.report(self._progress, events=events)
        del self._events[: len(events)]
        self._reported = time.monotonic()

    def _flush(self) -> None:
        self._insist(self._report)

    def _advance(self, to: JobStatus, message: str) -> None:
        if self._status in _ORDER and _ORDER.index(self._status) < _ORDER.index(to):
            self._flush()
            self._status = self._insist(lambda: self._lease.advance(to, message=message))

    def _settle(self, last: Done | Failed | Stopped) -> JobStatus:
        """Write the engine's last word; give the job's state after it.

        Raises:
            ArtifactStorageError, OSError: the artifacts cannot be stored.
        """
        self._flush()
        if isinstance(last, Done):
            artifacts = self._patiently(lambda: self._files.put_artifacts(last.artifacts))
            return self._insist(
                lambda: self._lease.succeed(result=last.result, artifacts=artifacts)
            )
        if isinstance(last, Stopped):
            self._keep_checkpoint()
            if self._status in _WISHES:
                return self._insist(self._lease.stop)
            return self._hand_back()
        _log.warning("job failed", job=self._job.id, code=last.code, reason=last.text)
        if last.is_lasting:
            return self._fail(last.code, last.text, param=last.param)
        if last.code == "disk_full":
            return self._wait_for_room(last)
        if last.code == "checkpoint_invalid":
            self._files.drop_checkpoints()
        return self._count_crash(last.code, last.text)

    def _wait_for_room(self, last: Failed) -> JobStatus:
        """Wait longer each time that the disk is full; after some minutes give up."""
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since > _STORAGE_SECONDS:
            return self._fail(last.code, last.text)
        self._wait(min(now - self._full_since, _LONG_PAUSE_SECONDS))
        return self._status

    def _fail(self, code: str, message: str, *, param: str | None = None) -> JobStatus:
        return self._insist(lambda: self._lease.fail(code=code, message=message, param=param))

    def _count_crash(self, code: str, message: str) -> JobStatus:
        self._flush()
        self._status = self._insist(lambda: self._lease.count_crash(code=code, message=message))
        return self._status

    def _hand_back(self) -> JobStatus:
        message = "its worker is shutting down; the job is queued again"
        return self._insist(lambda: self._lease.hand_back(message=message))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Repeat what fails while the artifact store is away, for some minutes."""
        deadline = time.monotonic() + _STORAGE_SECONDS
        while True:
            try:
                return work()
            except (ArtifactStorageError, OSError) as error:
                is_unwanted = self._workshop.stopping.is_set() or self._status in _WISHES
                if is_unwanted or time.monotonic() > deadline:
                    raise
                _log.warning("artifact store away", job=self._job.id, reason=str(error))
            self._wait(_PAUSE_SECONDS)

    def _insist(self, write: Callable[[], T]) -> T:
        """Repeat what fails while the database is away."""
        while True:
            try:
                return write()
            except OUTAGES as error:
                _log.warning("database away", job=self._job.id, reason=type(error).__name__)
            time.sleep(_PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait, and keep the lease."""
        self._workshop.stopping.wait(seconds)
        self._flush()


def _progress(phase: str, told: Told, *, steps_per_second: float | None = None) -> Progress:
    return Progress(
        phase=phase,
        step=told.step,
        total_steps=told.total_steps,
        eta_seconds=told.eta_seconds,
        steps_per_second=steps_per_second,
    )
