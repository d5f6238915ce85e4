"""Run one claimed job: pass the engine's messages to the store, and stop requests to the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from store.errors import ArtifactStorageError, BlobLostError, LeaseLostError
from store.jobs.leases import Progress
from store.jobs.life import WorkEvent
from store.jobs.spec import HubDataset, JobSpec
from store.states import JobStatus
from store.tables import Dataset
from worker.checkpoint_keeper import CheckpointKeeper
from worker.engine.handle import EngineDiedError
from worker.engine.messages import Control, Done, EngineEvent, Failed, RunJob, Stopped, StopRequest
from worker.engine.translation import file_data, heads_document, hub_data, is_reported_step
from worker.job_files import JobFiles
from worker.reporting import Reporter, StopWantedError

if TYPE_CHECKING:
    from store.jobs.claims import ClaimedJob
    from worker.context import WorkerContext

_LISTEN_SECONDS = 0.05
_LOADING_SECONDS = 1800.0  # loading a large model from a slow disk reports no progress
_STORAGE_SECONDS = 600.0  # how long the artifact store may be unreachable, or the disk full
_PAUSE_SECONDS = 2.0  # between two attempts
_LONG_PAUSE_SECONDS = 30.0
_QUIET_PHASES = frozenset({"loading", "writing"})
_log = structlog.get_logger(__name__)


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
            files = JobFiles(folder, storage=context.storage, tenant_id=job.tenant_id)
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


def _refuse(error: ValidationError, *, reporter: Reporter) -> None:
    """Fail a job whose spec this worker cannot read."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = f"this worker cannot read the job's {field}: {first['msg']}"
    reporter.insist(reporter.lease.fail, code="invalid_argument", message=message, param=field)


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
        self._trouble: tuple[float, int] | None = None  # its start; checkpoints stored by then
        self._last_event = time.monotonic()
        self._checkpoint = job.checkpoint  # still to be fetched

    def work(self) -> JobStatus:
        """Work until this worker no longer holds the job; return the job's state then.

        Raises:
            UnfitError: the engine cannot be started.
        """
        data: dict[str, Any] | None = None
        while self._reporter.stop_request is None:
            try:
                data = data or self._fetch()
                status = self._settle(self._compute(data))
            except StopWantedError:
                self._context.engine.kill()
                break
            except BlobLostError as error:
                message = f"the data set's files are missing; upload it again: {error}"
                status = self._fail("dataset_lost", message, param="dataset")
            except (ArtifactStorageError, OSError) as error:
                status = self._wait_out("artifact_storage", str(error))
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
        engine.send(self._order(data))
        while True:
            message = engine.receive(timeout=_LISTEN_SECONDS)
            if isinstance(message, Done | Failed | Stopped) and message.run == self._run:
                return message
            if isinstance(message, EngineEvent) and message.run == self._run:
                self._last_event = time.monotonic()
                self._handle(message)
            self._check_silence()
            self._beat()

    def _order(self, data: Mapping[str, Any]) -> RunJob:
        job, settings = self._job, self._context.settings
        return RunJob(
            run=self._run,
            spec=self._spec,
            data=data,
            model=str(self._context.backbones.get(job.model, job.model)),
            revision=job.revision,
            device=settings.device,
            checkpoints=str(self._files.checkpoints),
            checkpoint_seconds=settings.checkpoint_seconds,
            output=str(self._files.output),
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
        stop_request = self._reporter.stop_request
        if stop_request is None or stop_request == self._stop_sent:
            return
        if self._reporter.progress.phase == "loading":
            raise StopWantedError("a stop was requested before there was anything new to save")
        self._context.engine.send(Control(run=self._run, stop_request=stop_request))
        self._stop_sent = stop_request

    def _handle(self, event: EngineEvent) -> None:
        """Handle an event of the engine; write at once what must not be lost."""
        reporter = self._reporter
        if event.kind == "loaded":
            self._note("message", event, step=0)
        elif event.kind == "selecting":
            reporter.advance(JobStatus.SELECTING, message="scoring the heads")
            reporter.progress = _progress("selecting", event)
        elif event.kind == "selected":
            self._keep_selection(event)
            reporter.advance(JobStatus.TRAINING, message=event.text)
        elif event.kind == "resumed":
            self._handle_resumed(event)
        elif event.kind == "step":
            self._handle_step(event)
        elif event.kind == "evaluating":
            reporter.progress = _progress("evaluating", event)
        elif event.kind == "evaluated":
            self._note("metrics", event, data={"step": event.step, **event.metrics})
        elif event.kind == "checkpoint":
            self._keeper.offer(event.step, event.checkpoint)
        elif event.kind == "finished":
            reporter.progress = _progress("writing", event)
            self._note("message", event)

    def _handle_resumed(self, event: EngineEvent) -> None:
        reporter = self._reporter
        if reporter.status is JobStatus.TRAINING:  # the engine had crashed: no change of state
            reporter.note(WorkEvent(type="message", message=event.text))
        reporter.advance(JobStatus.TRAINING, message=event.text)

    def _handle_step(self, event: EngineEvent) -> None:
        speed = (event.samples_per_second or 0.0) / self._spec.training.batch_size
        self._reporter.progress = _progress("training", event, steps_per_second=speed)
        if is_reported_step(event):
            data = {
                "step": event.step,
                "total_steps": event.total_steps,
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "samples_per_second": event.samples_per_second,
            }
            self._note("step", event, data=data)

    def _note(
        self,
        type: str,  # noqa: A002 - the contract's name
        event: EngineEvent,
        *,
        step: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        number = event.step if step is None else step
        self._reporter.note(
            WorkEvent(type=type, message=event.text, step=number, data=dict(data or {}))
        )

    def _keep_selection(self, event: EngineEvent) -> None:
        if event.selection is None:
            raise ValueError("the engine reported a selection without its content")
        selection, heads = heads_document(
            event.selection, job_id=self._job.id, model=self._job.model
        )
        keep = self._reporter.lease.keep_selection
        self._reporter.insist(keep, selection=selection, heads=heads)
        self._note("selection", event, step=0, data=selection)

    def _settle(self, last: Done | Failed | Stopped) -> JobStatus:
        """Write the engine's last message; return the job's state after it.

        Raises:
            ArtifactStorageError, OSError: the artifacts cannot be stored.
        """
        reporter = self._reporter
        reporter.flush()
        if isinstance(last, Done):
            artifacts = reporter.meanwhile(self._files.put_artifacts, last.artifacts)
            return reporter.insist(reporter.lease.succeed, result=last.result, artifacts=artifacts)
        if isinstance(last, Stopped):
            self._keeper.settle()
            return self._leave()
        _log.warning("job failed", code=last.code)
        if last.is_lasting:
            return self._fail(last.code, last.text, param=last.param)
        if last.code == "disk_full":
            return self._wait_out(last.code, last.text)
        if last.code == "checkpoint_invalid":
            self._files.drop_checkpoints()
        return self._count_crash(last.code, last.text)

    def _leave(self) -> JobStatus:
        """Release the job: stop it as its owner requested, or return it to the queue."""
        self._reporter.flush()
        if self._reporter.is_asked_by_owner:
            return self._reporter.insist(self._reporter.lease.stop)
        return self._hand_back("the worker is shutting down; the job is queued again")

    def _hand_back(self, message: str) -> JobStatus:
        return self._reporter.insist(self._reporter.lease.hand_back, message=message)

    def _wait_out(self, code: str, message: str) -> JobStatus:
        """Wait while the disk is full or the store unreachable; fail the job after ten minutes."""
        _log.warning("waiting for room", code=code, reason=message)
        now = time.monotonic()
        if self._trouble is None or self._trouble[1] != self._keeper.kept:
            self._trouble = now, self._keeper.kept
        seconds = now - self._trouble[0]
        if seconds > _STORAGE_SECONDS:
            return self._fail(code, message)
        self._reporter.wait(min(seconds, _LONG_PAUSE_SECONDS))
        return self._reporter.status

    def _fail(self, code: str, message: str, *, param: str | None = None) -> JobStatus:
        fail = self._reporter.lease.fail
        return self._reporter.insist(fail, code=code, message=message, param=param)

    def _count_crash(self, code: str, message: str) -> JobStatus:
        reporter = self._reporter
        reporter.flush()
        reporter.status = reporter.insist(reporter.lease.count_crash, code=code, message=message)
        return reporter.status


def _progress(phase: str, event: EngineEvent, *, steps_per_second: float | None = None) -> Progress:
    return Progress(
        phase=phase,
        step=event.step,
        total_steps=event.total_steps,
        eta_seconds=event.eta_seconds,
        steps_per_second=steps_per_second,
    )
