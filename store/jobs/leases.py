"""Leases: everything that a worker writes about the job that it has claimed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import load_only

from store.database.connection import CLOCK, Database
from store.errors import LeaseLostError
from store.jobs.life import WorkEvent, append_event, move
from store.jobs.telemetry import ENGINE_CRASHES, count
from store.states import STOPPING, JobStatus, has_reached
from store.storage.space import clear, end
from store.storage.unnamed import release, sizes
from store.tables import IS_LEASED, Artifact, Job, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage import Blob


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job's progress; None leaves the column unchanged."""

    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    eta_seconds: float | None = None
    steps_per_second: float | None = None


MAX_ATTEMPTS = 3  # attempts without a newer checkpoint
_MINE = (
    sa.select(Job, CLOCK)
    .options(
        load_only(  # the columns that the calls below read; each further one costs time
            *(Job.tenant_id, Job.status, Job.started_at, Job.ran_seconds),
            *(Job.attempt, Job.checkpoint, Job.last_event),
        )
    )
    .where(Job.id == sa.bindparam("job_id"), Job.fence == sa.bindparam("fence"), IS_LEASED)
    .with_for_update()
)

_IS_OWNER = (
    Tenant.id
    == sa.select(Job.tenant_id)
    .where(Job.id == sa.bindparam("job_id"), Job.fence == sa.bindparam("fence"), IS_LEASED)
    .scalar_subquery()
)
_END_TURN = (
    sa.update(Tenant)
    .where(_IS_OWNER)
    .values(last_claim_at=CLOCK)
    .execution_options(synchronize_session=False)
)
# As the check of an artifact's foreign key locks it.
_LOCK_OWNER = sa.select(Tenant.id).where(_IS_OWNER).with_for_update(read=True, key_share=True)


class Lease:
    """The right to write one job until another worker claims it.

    Every call is one transaction that checks the fence, renews the lease and adds the time since
    the last call to the time that the job has run: a crash loses the count of that time only. It
    raises LeaseLostError if the worker no longer holds the job; otherwise most return the job's
    state.

    Args:
        database: where the job is.
        job_id: of the claimed job.
        fence: from the claim.
        seconds: how long the worker may be silent after each call.
    """

    def __init__(self, database: Database, job_id: str, *, fence: int, seconds: float) -> None:
        self._database = database
        self._job_id = job_id
        self._fence = fence
        self._seconds = seconds
        # This clock stops while the machine is suspended, which runs nothing then.
        self._counted_at = time.monotonic()

    def report(self, progress: Progress, *, events: Sequence[WorkEvent] = ()) -> JobStatus:
        """Write progress and events.

        Returns:
            The job's state; ``pausing`` and ``cancelling`` are requests to the worker.
        """
        with self._held() as (session, job, now):
            for name, value in vars(progress).items():
                if value is not None:
                    setattr(job, name, value)
            for event in events:
                append_event(session, job, event, now=now)
            return job.status

    def advance(self, to: JobStatus, *, message: str) -> JobStatus:
        """Move the job to the next phase, unless a pause or cancellation was requested.

        A job that has already reached the phase stays in its state: after a crash of its engine it
        runs again from the newest checkpoint.

        Raises:
            IllegalTransitionError: the job's state does not allow this move.
        """
        with self._held() as (session, job, now):
            if job.status not in STOPPING and not has_reached(job.status, to):
                changes = {"lease_until": job.lease_until}
                move(session, job, to, message=message, changes=changes, now=now)
            return job.status

    def keep_selection(self, *, selection: Mapping[str, Any], heads: Mapping[str, Any]) -> None:
        """Store the selected heads and all scores."""
        with self._held() as (_, job, _now):
            job.selection, job.heads = dict(selection), dict(heads)

    def keep_warnings(self, warnings: Sequence[Mapping[str, Any]]) -> None:
        """Store what the job's owner should know, instead of what was known at its admission."""
        with self._held() as (_, job, _now):
            job.warnings = [dict(warning) for warning in warnings]

    def keep_checkpoint(self, *, step: int, files: Mapping[str, Blob]) -> None:
        """Record a newer checkpoint and its stored files, which resets the count of attempts."""
        with self._held() as (session, job, _now):
            named = {blob.sha256 for blob in files.values()}
            clear(session, job.id, named=named)
            if job.checkpoint is not None:
                release(session, job.tenant_id, sizes(job.checkpoint["files"]), named=named)
            if job.checkpoint is None or step > job.checkpoint["step"]:
                job.attempt = 1
            entries = {name: vars(blob) for name, blob in files.items()}
            job.checkpoint = {"step": step, "files": entries}

    def succeed(self, *, result: Mapping[str, Any], artifacts: Mapping[str, Blob]) -> JobStatus:
        """End the job with its artifacts, unless a pause or cancellation was requested.

        Args:
            result: metrics and timings.
            artifacts: by encoding; already stored.

        Returns:
            ``succeeded``; ``cancelled`` or ``paused`` if that was requested meanwhile.
        """
        with self._held(first=_LOCK_OWNER) as (session, job, now):
            if job.status in STOPPING:
                return _stop(session, job, now=now)
            session.add_all(
                Artifact(
                    job_id=job.id,
                    encoding=encoding,
                    tenant_id=job.tenant_id,
                    sha256=blob.sha256,
                    bytes=blob.bytes,
                    created_at=now,
                )
                for encoding, blob in artifacts.items()
            )
            session.flush()
            end(session, job.id, named={blob.sha256 for blob in artifacts.values()})
            message, changes = "the head delta is stored", {"result": dict(result)}
            move(session, job, JobStatus.SUCCEEDED, message=message, changes=changes, now=now)
            return job.status

    def fail(self, *, code: str, message: str, param: str | None = None) -> JobStatus:
        """End the job with an error; if a cancellation was requested, cancel it instead."""
        with self._held() as (session, job, now):
            if job.status is JobStatus.CANCELLING:
                return _stop(session, job, now=now)
            fail(session, job, code=code, message=message, param=param, now=now)
            return job.status

    def count_crash(self, *, code: str, message: str) -> JobStatus:
        """Count an attempt that failed while the worker lived, such as a crash of the engine.

        Args:
            code: of the failure; it becomes the job's after the last attempt.
            message: for people.

        Returns:
            The job's state: unchanged if it will be tried again; ``failed`` after the last attempt;
            ``paused`` or ``cancelled`` if that was requested meanwhile.
        """
        with self._held() as (session, job, now):
            if job.status in STOPPING:
                return _stop(session, job, now=now)
            count(session, ENGINE_CRASHES)
            if job.attempt >= MAX_ATTEMPTS:
                message = f"{job.attempt} attempts failed without a newer checkpoint: {message}"
                fail(session, job, code=code, message=message, now=now)
                return job.status
            job.attempt += 1
            event = WorkEvent(
                type="message",
                message=f"{message}; trying again",
                data={"code": code},
                level="warn",
            )
            append_event(session, job, event, now=now)
            return job.status

    def stop(self) -> JobStatus:
        """Stop the job as requested: it is then ``paused`` or ``cancelled``.

        Raises:
            IllegalTransitionError: no stop was requested.
        """
        with self._held() as (session, job, now):
            return _stop(session, job, now=now)

    def hand_back(self, *, message: str) -> JobStatus:
        """Return the job to the queue, or stop it as requested, without counting an attempt."""
        with self._held() as (session, job, now):
            if job.status in STOPPING:
                return _stop(session, job, now=now)
            move(session, job, JobStatus.QUEUED, message=message, now=now)
            return job.status

    def end_turn(self, *, message: str) -> JobStatus:
        """Return the job to the queue as :meth:`hand_back` does, and its tenant to the last turn.

        Otherwise the tenant could be the next in turn again, since its last claim may be older than
        that of the tenant that waits.
        """
        with self._held(first=_END_TURN) as (session, job, now):
            if job.status in STOPPING:
                return _stop(session, job, now=now)
            move(session, job, JobStatus.QUEUED, message=message, now=now)
            return job.status

    @contextmanager
    def _held(
        self, *, first: sa.Update | sa.Select[str] | None = None
    ) -> Iterator[tuple[Session, Job, datetime]]:
        """Yield a transaction that holds the job and renews the lease, the job, and the time.

        Args:
            first: a statement that locks the job's tenant. Whoever locks both begins with the
                tenant: two that did it in different order would wait for each other.
        """
        mine = {"job_id": self._job_id, "fence": self._fence}
        moment = time.monotonic()
        with self._database.write() as session:
            if first is not None:
                session.execute(first, mine)
            row = session.execute(_MINE, mine).one_or_none()
            if row is None:
                raise LeaseLostError(f"job {self._job_id} is no longer this worker's")
            job, now = row
            job.lease_until = now + timedelta(seconds=self._seconds)
            job.ran_seconds += moment - self._counted_at
            yield session, job, now
        self._counted_at = moment


def fail(
    session: Session,
    job: Job,
    *,
    code: str,
    message: str,
    param: str | None = None,
    now: datetime,
) -> None:
    """Move a locked job to ``failed`` and record the error."""
    error = {"code": code, "message": message, "param": param}
    move(
        session,
        job,
        JobStatus.FAILED,
        message=message,
        data={"code": code},
        changes={"error": error},
        now=now,
    )


def _stop(session: Session, job: Job, *, now: datetime) -> JobStatus:
    to = STOPPING.get(job.status, JobStatus.PAUSED)
    move(session, job, to, message="its worker has stopped", now=now)
    return job.status
