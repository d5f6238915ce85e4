"""Run one claimed job: start it in the engine, pass stop requests on, and settle how it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from store.errors import ArtifactStorageError, BlobLostError, LeaseLostError
from store.jobs.leases import Progress
from store.jobs.life import WorkEvent
from store.jobs.spec import HubDataset, JobSpec
from store.storage.space import store_files
from store.tables import Dataset
from worker.checkpoint_keeper import CheckpointKeeper
from worker.clock import JobClock
from worker.engine.handle import EngineDiedError
from worker.engine.messages import (
    TIME_LIMIT_EXCEEDED,
    Control,
    Done,
    EngineEvent,
    Failed,
    RunJob,
    Stopped,
    StopRequest,
)
from worker.engine.translation import file_data, hub_data
from worker.events import EventHandler
from worker.job_files import JobFiles
from worker.reporting import Reporter, StopWantedError

if TYPE_CHECKING:
    from pathlib import Path

    from store.jobs.claims import ClaimedJob
    from store.states import JobStatus
    from store.storage import Blob
    from worker.context import WorkerContext

_LISTEN_SECONDS = 0.05
_LOADING_SECONDS = 1800.0  # loading a large model from a slow disk reports no progress
_STORAGE_SECONDS = 600.0  # how long the artifact store may be unreachable, or the disk full
_PAUSE_SECONDS = 2.0  # between two attempts
_LONG_PAUSE_SECONDS = 30.0
_LEAST_SECONDS = 0.001  # for a job whose time is up just now
# What a job's owner is told when waiting has not helped.
_NO_STORE = "the artifact store stayed unavailable; post the job again later"
_NO_ROOM = "the worker's disk stayed full; post the job again later"
# And when it begins.
_STORE_AWAY = "the artifact store is unavailable; the worker tries again for some minutes"
_RESULT_WAITS = (
    "the head delta is ready, but the artifact store does not accept it; the worker tries again "
    "for some minutes"
)
_DISK_FULL = "the worker's disk is full; the worker tries again for some minutes"
_QUIET_PHASES = frozenset({"loading", "writing"})
_log = structlog.get_logger(__name__)


class _TimeUpError(Exception):
    """The job has run for its longest time, and the engine has not stopped it."""


class UnfitError(Exception):
    """This worker cannot run any job: its disk or its engine is broken."""


def run_job(job: ClaimedJob, *, context: WorkerContext) -> None:
    """Run a claimed job until it ends, is stopped, or is taken by another worker.

    Raises:
        UnfitError: this worker is broken; the job is fine and back in the queue.
        Exception: an unexpected error; the lease expires, and another worker takes the job.
    """
    with (
        structlog.contextvars.bound_contextvars(job=job.id, tenant=job.tenant_id),
        ExitStack() as stack,
    ):
        reporter = stack.enter_context(closing(Reporter(job, context=context)))
        try:
            spec = JobSpec.model_validate(job.spec)
        except ValidationError as error:  # a gateway of another version has admitted the job
            _refuse(error, reporter=reporter)
            return
        try:
            folder = context.folder / job.id
            files = _files_of(job, folder, context=context, reporter=reporter)
        except OSError as error:
            message = "the worker's disk is broken; the job is queued again"
            reporter.insist(reporter.lease.hand_back, message=message)
            raise UnfitError(f"cannot create a folder for a job: {error}") from error
        stack.callback(files.remove)
        keeper = stack.enter_context(closing(CheckpointKeeper(files, reporter=reporter)))
        _log.info("job claimed", model=job.model, attempt=job.attempt, fence=job.fence)
        run = _Run(job, spec, context=context, files=files, reporter=reporter, keeper=keeper)
        try:
            _log.info("job left", status=str(run.work()))
        except LeaseLostError:
            _log.warning("lease lost: the job is another worker's now")
            context.engine.kill()
        except BaseException:
            context.engine.kill()  # otherwise it would continue into the next job
            raise


def _files_of(
    job: ClaimedJob, folder: Path, *, context: WorkerContext, reporter: Reporter
) -> JobFiles:
    def put(files: Mapping[str, Path]) -> dict[str, Blob]:
        return reporter.insist(
            store_files,
            files,
            database=context.database,
            storage=context.storage,
            tenant_id=job.tenant_id,
            reservation_id=job.id,
        )

    return JobFiles(folder, storage=context.storage, tenant_id=job.tenant_id, put=put)


def _refuse(error: ValidationError, *, reporter: Reporter) -> None:
    """Fail a job whose spec this worker cannot read."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = f"this worker cannot read the job's {field}: {first['msg']}"
    reporter.insist(reporter.lease.fail, code="invalid_argument", message=message, param=field)


@dataclass
class _Trouble:
    """What a job waits out.

    Attributes:
        start: by the monotonic clock.
        newest: the step of the newest checkpoint stored by then.
        told: what the job's owner was told.
    """

    start: float
    newest: int | None
    told: set[str] = field(default_factory=set)


class _Run:
    """One job while this worker runs it.

    Methods raise LeaseLostError if the job was taken from this worker, and StopWantedError if it
    must stop and there is nothing to save.
    """

    def __init__(
        self,
        job: ClaimedJob,
        spec: JobSpec,
        *,
        context: WorkerContext,
        files: JobFiles,
        reporter: Reporter,
        keeper: CheckpointKeeper,
    ) -> None:
        self._job = job
        self._spec = spec
        self._context = context
        self._files = files
        self._reporter = reporter
        self._keeper = keeper
        self._run = ""  # the name of the engine's run
        self._runs = 0
        self._stop_sent: StopRequest | None = None  # the last one sent to the engine
        self._trouble: _Trouble | None = None
        self._last_event = time.monotonic()
        self._checkpoint = job.checkpoint  # still to be fetched
        self._clock = JobClock(job, spec, context=context)
        self._events = EventHandler(job, spec, reporter=reporter, keeper=keeper, clock=self._clock)
        self._model = str(context.backbones.get(job.model, job.model))

    def work(self) -> JobStatus:
        """Work until this worker no longer holds the job; return the job's state then.

        Raises:
            UnfitError: the engine cannot be started.
        """
        data: dict[str, Any] | None = None
        while self._reporter.stop_request is None:
            if self._clock.left <= 0:
                return self._fail_for_time()
            try:
                data = data or self._fetch()
                status = self._settle(self._compute(data))
            except StopWantedError:
                self._context.engine.kill()
                break
            except _TimeUpError:
                self._context.engine.kill()
                return self._fail_for_time()
            except BlobLostError as error:
                message = f"the data set's files are missing; upload it again: {error}"
                status = self._fail("dataset_lost", message, param="dataset")
            except (ArtifactStorageError, OSError) as error:
                code = ArtifactStorageError.code
                status = self._wait_out(code, str(error), first=_STORE_AWAY, last=_NO_STORE)
            except EngineDiedError as error:
                _log.error("engine died", reason=str(error))
                self._context.engine.kill()
                status = self._count_crash(error.code, str(error))
            if not status.is_leased:
                return status
            self._reporter.wait(_PAUSE_SECONDS)
        return self._leave()

    def _fetch(self) -> dict[str, Any]:
        """Bring the job's files here; return the splits as ``finetune`` takes them.

        Raises:
            BlobLostError: the data set is missing.
            ArtifactStorageError, OSError: the files cannot be fetched now.
        """
        if self._checkpoint is not None:
            self._fetch_checkpoint(self._checkpoint)
            self._checkpoint = None
        if isinstance(self._spec.dataset, HubDataset):
            return hub_data(self._spec.dataset)
        splits = self._reporter.insist(self._splits)
        return file_data(self._reporter.meanwhile(self._files.fetch_splits, splits))

    def _fetch_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Fetch the newest checkpoint; if it is missing, the job starts over."""
        try:
            self._reporter.meanwhile(self._files.fetch_checkpoint, checkpoint)
        except BlobLostError as error:
            self._files.drop_checkpoints()
            missing = f"the checkpoint of step {checkpoint['step']} is missing: {error}"
            message = f"{missing}; the job starts over"
            self._reporter.note(WorkEvent(type="message", message=message, level="warn"))

    def _splits(self) -> Mapping[str, Any]:
        with self._context.database.read() as session:
            query = sa.select(Dataset.splits).where(Dataset.id == self._job.dataset_id)
            splits: Mapping[str, Any] = session.scalars(query).one()
            return splits

    def _compute(self, data: Mapping[str, Any]) -> Done | Failed | Stopped:
        """Run the job in the engine; return the engine's last message.

        Raises:
            EngineDiedError: the engine died or made no progress for too long.
            UnfitError: the engine cannot be started.
        """
        engine = self._context.engine
        self._await_engine()
        self._runs += 1
        self._run, self._stop_sent = f"{self._job.id}.{self._job.fence}.{self._runs}", None
        self._last_event = time.monotonic()
        self._clock.restart_turn()
        engine.send(self._order(data))
        while True:
            message = engine.receive(timeout=_LISTEN_SECONDS)
            if isinstance(message, Done | Failed | Stopped) and message.run == self._run:
                return message
            if isinstance(message, EngineEvent) and message.run == self._run:
                self._last_event = time.monotonic()
                self._events.handle(message)
            self._check_silence()
            self._beat()

    def _order(self, data: Mapping[str, Any]) -> RunJob:
        job, settings = self._job, self._context.settings
        return RunJob(
            run=self._run,
            spec=self._spec,
            data=data,
            model=self._model,
            revision=job.revision,
            device=settings.device,
            checkpoints=str(self._files.checkpoints),
            checkpoint_seconds=settings.checkpoint_seconds,
            state_memory_bytes=settings.state_memory_bytes,
            output=str(self._files.output),
            max_seconds=max(self._clock.left, _LEAST_SECONDS),
        )

    def _await_engine(self) -> None:
        """Start the engine if it is not running, and wait until it is ready."""
        engine = self._context.engine
        engine.start()
        self._last_event = time.monotonic()
        self._reporter.progress = Progress(phase="loading")
        try:
            while not engine.is_ready:
                engine.receive(timeout=_LISTEN_SECONDS)
                self._check_silence()
                self._beat()
        except EngineDiedError as error:
            engine.kill()
            self._hand_back("the worker's engine is broken; the job is queued again")
            raise UnfitError(f"the engine cannot be started: {error}") from error

    def _check_silence(self) -> None:
        silence = time.monotonic() - self._last_event
        limit = self._context.settings.engine_stall_seconds
        if self._reporter.progress.phase in _QUIET_PHASES:
            limit = max(_LOADING_SECONDS, limit)
        if silence > limit:
            raise EngineDiedError(
                f"the engine made no progress for {silence:.0f} seconds", code="engine_stalled"
            )

    def _beat(self) -> None:
        """Report periodically, and pass stop requests on to the engine."""
        self._reporter.beat()
        self._keeper.go_on()
        if self._clock.is_overdue:
            raise _TimeUpError
        if not self._reporter.is_turn_over:
            self._reporter.is_turn_over = self._clock.is_turn_over()
        stop_request = self._reporter.stop_request
        if stop_request is None or stop_request == self._stop_sent:
            return
        if self._reporter.progress.phase == "loading":
            raise StopWantedError("a stop was requested before there was anything new to save")
        self._context.engine.send(Control(run=self._run, stop_request=stop_request))
        self._stop_sent = stop_request

    def _settle(self, last: Done | Failed | Stopped) -> JobStatus:
        """Write the engine's last message; return the job's state after it.

        Raises:
            OSError: the artifacts cannot be read.
        """
        self._reporter.flush()
        if isinstance(last, Done):
            self._keeper.abandon()
            return self._store_result(last)
        if isinstance(last, Stopped):
            self._keeper.settle()
            return self._leave()
        return self._settle_failure(last)

    def _store_result(self, done: Done) -> JobStatus:
        """Store the artifacts and end the job; while the store refuses them, keep them and retry.

        Its turn does not end meanwhile: the next worker would have to compute them again.

        Raises:
            OSError: the artifacts cannot be read.
        """
        reporter = self._reporter
        while True:
            try:
                artifacts = reporter.meanwhile(self._files.put_artifacts, done.artifacts)
            except ArtifactStorageError as error:
                status = self._wait_out(error.code, str(error), first=_RESULT_WAITS, last=_NO_STORE)
            else:
                result = done.result
                return reporter.insist(reporter.lease.succeed, result=result, artifacts=artifacts)
            if not status.is_leased:
                return status
            reporter.wait(_PAUSE_SECONDS)
            if reporter.stop_request is not None:
                return self._leave()

    def _settle_failure(self, last: Failed) -> JobStatus:
        _log.warning("job failed", code=last.code)
        if last.code == TIME_LIMIT_EXCEEDED:
            return self._fail_for_time()
        if last.code == "out_of_memory" and self._context.engine.jobs > 1:
            # Backbones of earlier jobs may take the memory that this one needs. In a new engine the
            # job has all of it: if that is not enough either, no further try succeeds.
            self._context.engine.kill()
            return self._reporter.status
        if last.is_lasting:
            return self._fail(last.code, last.text, param=last.param)
        if last.code == "disk_full":
            return self._wait_out(last.code, last.text, first=_DISK_FULL, last=_NO_ROOM)
        if last.code == "checkpoint_invalid":
            self._files.drop_checkpoints()
        return self._count_crash(last.code, last.text)

    def _leave(self) -> JobStatus:
        """Release the job: stop it as its owner requested, or return it to the queue."""
        self._reporter.flush()
        if self._reporter.is_asked_by_owner:
            return self._reporter.insist(self._reporter.lease.stop)
        if self._reporter.is_turn_over:
            message = "its turn is over, and another tenant's job waits; the job is queued again"
            return self._reporter.insist(self._reporter.lease.end_turn, message=message)
        return self._hand_back("the worker is shutting down; the job is queued again")

    def _hand_back(self, message: str) -> JobStatus:
        return self._reporter.insist(self._reporter.lease.hand_back, message=message)

    def _wait_out(self, code: str, reason: str, *, first: str, last: str) -> JobStatus:
        """Wait while the disk is full or the store unreachable; fail the job after ten minutes.

        Only a newer checkpoint starts the time anew, and lets the owner be told again. Another
        trouble does not, because two can alternate; nor does a checkpoint of the same step: a job
        that starts over writes the first one again.

        Args:
            code: of the job's error.
            reason: for the log only, because it may name addresses and paths.
            first: what the job's owner is told at first, once.
            last: what they are told when the job fails.
        """
        _log.warning("waiting for room", code=code, reason=reason)
        now = time.monotonic()
        newest = self._keeper.newest
        if self._trouble is None or self._trouble.newest != newest:
            self._trouble = _Trouble(start=now, newest=newest)
        trouble = self._trouble
        if first not in trouble.told:
            trouble.told.add(first)
            data = {"code": code}
            self._reporter.note(WorkEvent(type="message", message=first, data=data, level="warn"))
        seconds = now - trouble.start
        if seconds > _STORAGE_SECONDS:
            return self._fail(code, last)
        self._reporter.wait(min(seconds, _LONG_PAUSE_SECONDS))
        return self._reporter.status

    def _fail_for_time(self) -> JobStatus:
        self._reporter.flush()
        message = self._clock.describe_end(self._reporter.progress)
        return self._fail(TIME_LIMIT_EXCEEDED, message, param=self._clock.param)

    def _fail(self, code: str, message: str, *, param: str | None = None) -> JobStatus:
        fail = self._reporter.lease.fail
        return self._reporter.insist(fail, code=code, message=message, param=param)

    def _count_crash(self, code: str, message: str) -> JobStatus:
        reporter = self._reporter
        reporter.flush()
        reporter.status = reporter.insist(reporter.lease.count_crash, code=code, message=message)
        return reporter.status
