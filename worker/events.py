"""Write what the engine reports of a job: its phases, progress, events, and what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from store.jobs.leases import Progress
from store.jobs.life import WorkEvent
from store.states import JobStatus
from worker.engine.translation import heads_document, is_reported_step

if TYPE_CHECKING:
    from store.jobs.claims import ClaimedJob
    from store.jobs.spec import JobSpec
    from worker.checkpoint_keeper import CheckpointKeeper
    from worker.clock import JobClock
    from worker.engine.messages import EngineEvent
    from worker.reporting import Reporter


class EventHandler:
    """Passes the engine's events of one job to the store.

    Args:
        job: as it was claimed.
        spec: of the job.
        reporter: writes for the job, under its lease.
        keeper: gets the checkpoints.
        clock: hears of the steps.
    """

    def __init__(
        self,
        job: ClaimedJob,
        spec: JobSpec,
        *,
        reporter: Reporter,
        keeper: CheckpointKeeper,
        clock: JobClock,
    ) -> None:
        self._job = job
        self._spec = spec
        self._reporter = reporter
        self._keeper = keeper
        self._clock = clock

    def handle(self, event: EngineEvent) -> None:
        """Handle an event; write at once what must not be lost."""
        reporter = self._reporter
        if event.kind in ("loaded", "yardsticks"):
            kind = "message" if event.kind == "loaded" else event.kind
            self._note(kind, event, step=0, data=event.yardsticks)
            self._keep_warnings(event)
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
        elif event.kind in ("probing", "evaluating"):
            reporter.progress = _progress(event.kind, event)
        elif event.kind in ("evaluated", "tested"):
            self._note_metrics(event)
        elif event.kind == "checkpoint":
            self._keeper.offer(event.step, event.checkpoint)
        elif event.kind == "finished":
            reporter.progress = _progress("writing", event)
            self._note("message", event)
            self._keep_warnings(event)

    def _handle_resumed(self, event: EngineEvent) -> None:
        reporter = self._reporter
        if reporter.status is JobStatus.TRAINING:  # the engine had crashed: no change of state
            reporter.note(WorkEvent(type="message", message=event.text))
        reporter.advance(JobStatus.TRAINING, message=event.text)

    def _handle_step(self, event: EngineEvent) -> None:
        self._clock.note_step()
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

    def _note_metrics(self, event: EngineEvent) -> None:
        if event.kind == "tested":  # with the best step's weights, not the last one's
            self._note("test", event, data=event.metrics)
        else:
            self._note("metrics", event, data={"step": event.step, **event.metrics})

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

    def _keep_warnings(self, event: EngineEvent) -> None:
        """Store the warnings: those of the gateway, which sees the profile only, and more.

        An event has all warnings so far, in the order of their discovery, so each keeps its number.
        """
        self._reporter.insist(self._reporter.lease.keep_warnings, event.warnings)
        for number, warning in enumerate(event.warnings):
            message, data = warning["message"], dict(warning)
            self._reporter.note(
                WorkEvent(type="warning", message=message, step=number, data=data, level="warn")
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


def _progress(phase: str, event: EngineEvent, *, steps_per_second: float | None = None) -> Progress:
    return Progress(
        phase=phase,
        step=event.step,
        total_steps=event.total_steps,
        eta_seconds=event.eta_seconds,
        steps_per_second=steps_per_second,
    )
