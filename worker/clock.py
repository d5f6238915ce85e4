"""The clock of a claimed job: when its longest time is up, and when its turn is over."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import structlog

from store.database.connection import OUTAGES
from store.jobs.turns import is_turn_over

if TYPE_CHECKING:
    from store.jobs.claims import ClaimedJob
    from store.jobs.leases import Progress
    from store.jobs.spec import JobSpec
    from worker.context import WorkerContext

_ANSWER_SECONDS = 30.0  # for the engine to stop by itself, at the end of its step
_ASK_SECONDS = 2.0  # between two questions whether another tenant waits
_log = structlog.get_logger(__name__)


class JobClock:
    """The time that a job has run: in earlier claims, and since this worker has claimed it.

    Attributes:
        limit: the most seconds that the job may run: its own limit, or the server's if that is
            shorter.
        param: the field of the spec that sets the limit; None if the server does.
    """

    def __init__(self, job: ClaimedJob, spec: JobSpec, *, context: WorkerContext) -> None:
        settings = context.settings
        self._job = job
        self._context = context
        self._started_at = time.monotonic()
        self._asks_at = math.inf
        own = spec.training.max_seconds
        is_own = own is not None and own <= settings.job_max_seconds
        self.limit = own if is_own and own is not None else settings.job_max_seconds
        self.param = "training.max_seconds" if is_own else None

    @property
    def ran(self) -> float:
        """Seconds that the job has run in all."""
        return self._job.ran_seconds + time.monotonic() - self._started_at

    @property
    def left(self) -> float:
        """Seconds until its longest time is up; negative after that."""
        return self.limit - self.ran

    @property
    def is_overdue(self) -> bool:
        """Whether the engine has had time enough to stop the job by itself."""
        return self.left < -_ANSWER_SECONDS

    def note_step(self) -> None:
        """Begin the turn with the first step: loading a large model would take a part of it."""
        if math.isinf(self._asks_at):
            self._asks_at = time.monotonic() + self._context.settings.turn_seconds

    def restart_turn(self) -> None:
        """Begin the turn anew with the next step: an engine starts, and has nothing new to keep."""
        self._asks_at = math.inf

    def is_turn_over(self) -> bool:
        """Return whether the job has to make room for a tenant that waits; asks now and then."""
        now = time.monotonic()
        if now < self._asks_at:
            return False
        self._asks_at = now + _ASK_SECONDS
        settings = self._context.settings
        try:
            return is_turn_over(
                self._context.database,
                self._context.claimant,
                self._job.id,
                turn_seconds=settings.turn_seconds,
                max_running=settings.tenant_max_running,
            )
        except OUTAGES as error:
            _log.warning("not asked who waits", reason=type(error).__name__)
            return False

    def describe_end(self, progress: Progress) -> str:
        """Return why the job is stopped, and what it has reached, for its owner."""
        whose = "its training.max_seconds" if self.param else "the server's HIFI_JOB_MAX_SECONDS"
        reached = "before its first step"
        if progress.step and progress.phase not in ("probing", "selecting"):
            reached = f"after step {progress.step:,} of {progress.total_steps:,}"
        return (
            f"the job has run for {self.ran:,.0f} seconds; {whose} allows {self.limit:,g}: it was "
            f"stopped {reached}, and nothing of it is kept"
        )
