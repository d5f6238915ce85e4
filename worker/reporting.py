"""What a worker tells the store about its job, and hears from its owner: the lease, kept alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import structlog

from store.database import OUTAGES
from store.leases import Lease, Progress, WorkEvent
from store.states import JobStatus

if TYPE_CHECKING:
    from store.claims import ClaimedJob
    from worker.messages import Wish
    from worker.workshop import Workshop

T = TypeVar("T")
_REPORT_SECONDS = 0.25  # how soon a wish of the owner is heard, and progress seen
_PAUSE_SECONDS = 2.0  # between two tries
_STOPPING_SECONDS = 15.0  # that a worker which is to end waits for its database
_ORDER = (JobStatus.VALIDATING, JobStatus.SELECTING, JobStatus.TRAINING)
_WISHES: dict[JobStatus, Wish] = {JobStatus.PAUSING: "pause", JobStatus.CANCELLING: "cancel"}
_log = structlog.get_logger(__name__)


class StopWantedError(Exception):
    """The owner or the worker's end asks to stop while there is nothing that could be kept."""


class Reporter:
    """The lease of one job, renewed for as long as somebody asks this object to do anything.

    What is told here is written a few times a second, and at once where it must not be lost. While
    the database is away it is kept.

    Args:
        job: as it was claimed.
        workshop: the worker's tools.

    Attributes:
        lease: for what is written at once, through :meth:`insist`.
        status: the job's, as it was last seen.
        progress: is written with the next report.
    """

    def __init__(self, job: ClaimedJob, *, workshop: Workshop) -> None:
        self._workshop = workshop
        self._seconds = workshop.settings.lease_seconds
        self.lease = Lease(workshop.database, job.id, fence=job.fence, seconds=self._seconds)
        self.status = JobStatus.VALIDATING
        self.progress = Progress(phase="loading")
        self._events: list[WorkEvent] = []
        self._due = 0.0
        self._end: float | None = None  # when a worker that is to end loses patience
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="storage")

    def close(self) -> None:
        """Let go of the helper thread; what it is at is nobody's any more."""
        self._helper.shutdown(wait=False, cancel_futures=True)

    @property
    def wish(self) -> Wish | None:
        """What the job's owner asks for, or else the worker's end."""
        default: Wish | None = "pause" if self._workshop.stopping.is_set() else None
        return _WISHES.get(self.status, default)

    @property
    def is_asked_by_owner(self) -> bool:
        """Whether the job is to be paused or cancelled, and not merely to change its worker."""
        return self.status in _WISHES

    def note(self, event: WorkEvent) -> None:
        """Keep an event for the next report."""
        self._events.append(event)

    def beat(self) -> None:
        """Report if it is time to; an outage is left to the next beat.

        Raises:
            LeaseLostError: the job is another worker's now, or nobody's.
        """
        if time.monotonic() < self._due:
            return
        try:
            self._report()
        except OUTAGES as error:
            _log.warning("database away", reason=type(error).__name__)
            self._due = time.monotonic() + _PAUSE_SECONDS

    def flush(self) -> None:
        """Report now: what follows must not be written before it.

        Raises:
            LeaseLostError: as :meth:`beat`.
        """
        self.insist(self._report)

    def _report(self) -> None:
        events = list(self._events)
        self.status = self.lease.report(self.progress, events=events)
        del self._events[: len(events)]
        self._due = time.monotonic() + _REPORT_SECONDS

    def _has_to_end(self) -> bool:
        """Tell whether the worker was told to end, and has not much time left."""
        if self._end is None and self._workshop.stopping.is_set():
            self._end = time.monotonic() + _STOPPING_SECONDS
        return self._end is not None and time.monotonic() > self._end

    def advance(self, to: JobStatus, *, message: str) -> None:
        """Go on to the next state, unless the job is there already or is to stop.

        Raises:
            LeaseLostError: as :meth:`beat`.
        """
        if self.status in _ORDER and _ORDER.index(self.status) < _ORDER.index(to):
            self.flush()
            self.status = self.insist(lambda: self.lease.advance(to, message=message))

    def insist(self, write: Callable[[], T]) -> T:
        """Repeat what fails while the database is away.

        Raises:
            LeaseLostError: as :meth:`beat`.
            OUTAGES: it is still away some time after the worker was told to end.
        """
        while True:
            try:
                return write()
            except OUTAGES as error:
                if self._has_to_end():
                    raise
                _log.warning("database away", reason=type(error).__name__)
            time.sleep(_PAUSE_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait, unless the worker is to end, and keep the lease.

        Raises:
            LeaseLostError: as :meth:`beat`.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._workshop.stopping.is_set():
            self._workshop.stopping.wait(min(left, self._seconds / 3))
            self.flush()

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Do something slow in a thread, and keep the lease.

        Raises:
            StopWantedError: the job is to stop; the work is left to itself.
            LeaseLostError: as :meth:`beat`.
            Exception: whatever the work raises.
        """
        future = self._helper.submit(work)
        while True:
            try:
                return future.result(timeout=_REPORT_SECONDS)
            except TimeoutError:
                if future.done():  # it is the work's own
                    raise
            self.beat()
            if self.is_asked_by_owner or self._has_to_end():
                raise StopWantedError("asked to stop while files are on their way")
