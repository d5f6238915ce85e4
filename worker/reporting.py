"""A worker's reports about its job, which renew the lease, and its owner's stop requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from store.database.connection import OUTAGES
from store.jobs.leases import Lease, Progress
from store.states import JobStatus, has_reached

if TYPE_CHECKING:
    from store.jobs.claims import ClaimedJob
    from store.jobs.life import WorkEvent
    from worker.context import WorkerContext
    from worker.engine.messages import StopRequest

P = ParamSpec("P")
T = TypeVar("T")
_REPORT_SECONDS = 0.25  # the delay until a stop request is noticed and progress is visible
_PAUSE_SECONDS = 2.0  # between two attempts
_STOPPING_SECONDS = 15.0  # how long a stopping worker waits for its database
_STOP_REQUESTS: dict[JobStatus, StopRequest] = {
    JobStatus.PAUSING: "pause",
    JobStatus.CANCELLING: "cancel",
}
_log = structlog.get_logger(__name__)


class StopWantedError(Exception):
    """The owner or the worker's shutdown requests a stop before there is anything to save."""


class Reporter:
    """The lease of one job, renewed with every use of this object.

    Events and progress are written a few times a second, and at once if they must not be lost.
    While the database is unreachable they are kept in memory. Every method that writes raises
    LeaseLostError if the worker no longer holds the job.

    Attributes:
        lease: for immediate writes, through :meth:`insist`.
        status: the job's last known state.
        progress: written with the next report.
        is_turn_over: whether the job makes room for another tenant's.
    """

    def __init__(self, job: ClaimedJob, *, context: WorkerContext) -> None:
        self._context = context
        self._seconds = context.settings.lease_seconds
        self.lease = Lease(context.database, job.id, fence=job.fence, seconds=self._seconds)
        self.status = JobStatus.VALIDATING
        self.progress = Progress(phase="loading")
        self.is_turn_over = False
        self._events: list[WorkEvent] = []
        self._due = 0.0
        self._end: float | None = None  # when a stopping worker stops waiting
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="storage")

    def close(self) -> None:
        """Release the helper thread and ignore its unfinished work."""
        self._helper.shutdown(wait=False, cancel_futures=True)

    @property
    def stop_request(self) -> StopRequest | None:
        """The stop request of the job's owner, else of the worker's shutdown or another tenant."""
        must_leave = self.is_turn_over or self._context.stopping.is_set()
        default: StopRequest | None = "pause" if must_leave else None
        return _STOP_REQUESTS.get(self.status, default)

    @property
    def is_asked_by_owner(self) -> bool:
        """Whether the owner requested a pause or cancellation; a shutdown does not count."""
        return self.status in _STOP_REQUESTS

    def note(self, event: WorkEvent) -> None:
        """Keep an event for the next report."""
        self._events.append(event)

    def beat(self) -> None:
        """Send a report if one is due; after an outage the next beat sends it."""
        if time.monotonic() < self._due:
            return
        try:
            self._report()
        except OUTAGES as error:
            _log.warning("database away", reason=type(error).__name__)
            self._due = time.monotonic() + _PAUSE_SECONDS

    def flush(self) -> None:
        """Report now, so that later writes follow it."""
        self.insist(self._report)

    def _report(self) -> None:
        events = list(self._events)
        self.status = self.lease.report(self.progress, events=events)
        del self._events[: len(events)]
        self._due = time.monotonic() + _REPORT_SECONDS

    def _has_to_end(self) -> bool:
        """Return whether the worker is stopping and its time is up."""
        if self._end is None and self._context.stopping.is_set():
            self._end = time.monotonic() + _STOPPING_SECONDS
        return self._end is not None and time.monotonic() > self._end

    def advance(self, to: JobStatus, *, message: str) -> None:
        """Move the job to the next state, unless it is already there or must stop."""
        if not self.is_asked_by_owner and not has_reached(self.status, to):
            self.flush()
            self.status = self.insist(self.lease.advance, to, message=message)

    def insist(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that writes; retry it while the database is unreachable.

        Raises:
            OUTAGES: the database is still unreachable some time after the worker was stopped.
        """
        while True:
            try:
                return write(*args, **kwargs)
            except OUTAGES as error:
                if self._has_to_end():
                    raise
                _log.warning("database away", reason=type(error).__name__)
            time.sleep(_PAUSE_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait and keep the lease; return early if the job must stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.stop_request is None:
            self._context.stopping.wait(min(left, _REPORT_SECONDS))
            self.beat()

    def meanwhile(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a slow function in a thread, and keep the lease meanwhile.

        Raises:
            StopWantedError: the job must stop; the work continues unattended.
            Exception: any error of the work.
        """
        future = self._helper.submit(work, *args, **kwargs)
        while True:
            try:
                return future.result(timeout=_REPORT_SECONDS)
            except TimeoutError:
                if future.done():  # the work itself raised it
                    raise
            self.beat()
            if self.is_asked_by_owner or self._has_to_end():
                raise StopWantedError("a stop was requested during a file transfer")
