"""Leases: what a worker may write about the job that it has claimed, and no other worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.database import Database, database_now
from store.errors import LeaseLostError
from store.life import append_event, move
from store.states import LEASED, STOPPING, JobStatus
from store.tables import Artifact, Job

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage import Blob


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is; None leaves the column as it is."""

    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class WorkEvent:
    """Something that the engine tells; ``step`` as in ``append_event``."""

    type: str
    message: str
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


class Lease:
    """The right to write one job, for as long as nobody else has claimed it.

    Every call is one transaction that renews the lease and checks the fence.

    Args:
        database: where the job is.
        job_id: which.
        fence: from the claim.
        seconds: how long the worker may be silent after each call.
    """

    def __init__(self, database: Database, job_id: str, *, fence: int, seconds: float) -> None:
        self._database = database
        self._job_id = job_id
        self._fence = fence
        self._seconds = seconds

    def report(self, progress: Progress, *, events: Sequence[WorkEvent] = ()) -> JobStatus:
        """Write progress and events.

        Returns:
            The job's state: ``pausing`` and ``cancelling`` are requests to the worker.

        Raises:
            LeaseLostError: the job is another worker's now, or nobody's.
        """
        with self._database.write() as session:
            job = self._lock(session)
            for name, value in vars(progress).items():
                if value is not None:
                    setattr(job, name, value)
            for event in events:
                append_event(
                    session,
                    job,
                    type=event.type,
                    message=event.message,
                    data=event.data,
                    step=event.step,
                )
            return job.status

    def advance(self, to: JobStatus, *, message: str) -> JobStatus:
        """Go on to the next phase, unless the job is to pause or to end.

        Returns:
            The job's state afterwards.

        Raises:
            LeaseLostError: as :meth:`report`.
            IllegalTransitionError: the job's state does not lead there.
        """
        with self._database.write() as session:
            job = self._lock(session)
            if job.status not in {*STOPPING, to}:
                move(session, job, to, message=message)
            return job.status

    def keep_selection(self, *, selection: Mapping[str, Any], heads: Mapping[str, Any]) -> None:
        """Write which heads were selected, and all scores.

        Raises:
            LeaseLostError: as :meth:`report`.
        """
        with self._database.write() as session:
            job = self._lock(session)
            job.selection, job.heads = dict(selection), dict(heads)

    def keep_checkpoint(self, *, step: int, files: Mapping[str, Blob]) -> None:
        """Point to a newer checkpoint, from which tries are counted anew.

        Args:
            step: of the checkpoint.
            files: its files, stored already.

        Raises:
            LeaseLostError: as :meth:`report`.
        """
        with self._database.write() as session:
            job = self._lock(session)
            if job.checkpoint is None or step > job.checkpoint["step"]:
                job.attempt = 1
            entries = {name: vars(blob) for name, blob in files.items()}
            job.checkpoint = {"step": step, "files": entries}

    def succeed(self, *, result: Mapping[str, Any], artifacts: Mapping[str, Blob]) -> JobStatus:
        """End the job with its artifacts, unless it is to pause or to end otherwise.

        Args:
            result: metrics and timings.
            artifacts: by encoding, stored already.

        Returns:
            ``succeeded``; ``cancelled`` or ``paused`` where that was asked for in the meantime.

        Raises:
            LeaseLostError: as :meth:`report`.
        """
        with self._database.write() as session:
            job = self._lock(session)
            if job.status in STOPPING:
                return _stop(session, job)
            now = database_now(session)
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
            job.result = dict(result)
            move(session, job, JobStatus.SUCCEEDED, message="the head delta is stored", now=now)
            return job.status

    def fail(self, *, code: str, message: str, param: str | None = None) -> JobStatus:
        """End the job with an error; one that is to be cancelled is cancelled.

        Raises:
            LeaseLostError: as :meth:`report`.
        """
        with self._database.write() as session:
            job = self._lock(session)
            if job.status is JobStatus.CANCELLING:
                return _stop(session, job)
            fail(session, job, code=code, message=message, param=param)
            return job.status

    def stop(self) -> JobStatus:
        """Give the job up as asked: ``paused`` or ``cancelled``.

        Raises:
            LeaseLostError: as :meth:`report`.
            IllegalTransitionError: nobody asked for it.
        """
        with self._database.write() as session:
            return _stop(session, self._lock(session))

    def hand_back(self, *, message: str) -> JobStatus:
        """Put the job back into the queue, or where it was asked to go; no try is counted.

        Raises:
            LeaseLostError: as :meth:`report`.
        """
        with self._database.write() as session:
            job = self._lock(session)
            if job.status in STOPPING:
                return _stop(session, job)
            move(session, job, JobStatus.QUEUED, message=message)
            return job.status

    def _lock(self, session: Session) -> Job:
        job = session.scalars(
            sa.select(Job)
            .where(Job.id == self._job_id, Job.fence == self._fence, Job.status.in_(LEASED))
            .with_for_update()
        ).one_or_none()
        if job is None:
            raise LeaseLostError(f"job {self._job_id} is no longer this worker's")
        job.lease_until = database_now(session) + timedelta(seconds=self._seconds)
        return job


def fail(session: Session, job: Job, *, code: str, message: str, param: str | None = None) -> None:
    """Move a locked job to ``failed`` and say why."""
    job.error = {"code": code, "message": message, "param": param}
    move(session, job, JobStatus.FAILED, message=message, data={"code": code})


def _stop(session: Session, job: Job) -> JobStatus:
    if job.status is JobStatus.CANCELLING:
        move(session, job, JobStatus.CANCELLED, message="cancelled")
    else:
        move(session, job, JobStatus.PAUSED, message="paused")
    return job.status
