"""The state machine: the one place that moves a job, and the one that writes its events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value

from store.database import database_now
from store.errors import IllegalTransitionError, NotFoundError
from store.states import JobStatus, may_follow
from store.tables import Job, JobEvent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_OF_LIVE_JOBS = ("checkpoint", "eta_seconds", "steps_per_second")
_JOBS = sa.Table(Job.__tablename__, Job.metadata)
_UPDATE_JOB = sa.update(_JOBS).where(_JOBS.c.id == sa.bindparam("job_id"))
_ADD_EVENT = sa.insert(sa.Table(JobEvent.__tablename__, JobEvent.metadata))


def lock_job(session: Session, job_id: str, *, tenant_id: str | None = None) -> Job:
    """Load a job and keep others from writing it until the transaction ends.

    Args:
        session: a write transaction. Whoever also locks the job's tenant does that first.
        job_id: which.
        tenant_id: whose; None for the server itself.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
    """
    query = sa.select(Job).where(Job.id == job_id).with_for_update()
    if tenant_id is not None:
        query = query.where(Job.tenant_id == tenant_id)
    job = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise NotFoundError("job", job_id)
    return job


def move(
    session: Session,
    job: Job,
    to: JobStatus,
    *,
    message: str,
    data: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> None:
    """Move a locked job to another state, which is an event.

    A job that no worker holds any more keeps neither lease nor worker, and a finished one nothing
    to go on from.

    Args:
        session: the transaction that holds the lock.
        job: from :func:`lock_job`.
        to: the new state.
        message: for people.
        data: more about it, plain JSON.
        changes: what else of the job changes with it, by column.
        now: the database's time, where the caller has just asked for it.

    Raises:
        IllegalTransitionError: the job's state does not lead there.
    """
    if not may_follow(to, job.status):
        raise IllegalTransitionError(f"job {job.id} is {job.status} and cannot become {to}")
    now = now or database_now(session)
    values = {**(changes or {}), "status": to, "last_event": job.last_event + 1}
    if to is JobStatus.VALIDATING and job.started_at is None:
        values["started_at"] = now
    if to.is_finished:
        values |= {"finished_at": now, **dict.fromkeys(_OF_LIVE_JOBS)}
    if not to.is_leased:
        values |= {"worker_id": None, "lease_until": None}
    _write(session, job, values)
    _add_event(
        session,
        job,
        type="status",
        message=message,
        data={"status": str(to), **(data or {})},
        level="error" if to is JobStatus.FAILED else "info",
        now=now,
    )


def _write(session: Session, job: Job, values: Mapping[str, Any]) -> None:
    """Write columns of a locked job at once: a session that finds out what changed is slower."""
    session.execute(_UPDATE_JOB, {**values, "job_id": job.id})
    for name, value in values.items():
        set_committed_value(job, name, value)


def append_event(
    session: Session,
    job: Job,
    *,
    type: str,  # noqa: A002 - the contract's name
    message: str,
    data: Mapping[str, Any] | None = None,
    step: int | None = None,
    level: str = "info",
    now: datetime | None = None,
) -> bool:
    """Add an event to a locked job.

    Args:
        session: the transaction that holds the lock.
        job: from :func:`lock_job`.
        type: ``status``, ``step``, …
        message: for people.
        data: for programs, plain JSON.
        step: of an event that a resumed job must not repeat: one per job, type and step.
        level: ``info``, ``warn`` or ``error``.
        now: the database's time, where the caller has just asked for it.

    Returns:
        False where the event is there already.
    """
    if step is not None and _has_event(session, job.id, type=type, step=step):
        return False
    job.last_event += 1
    _add_event(
        session,
        job,
        type=type,
        message=message,
        data=data or {},
        step=step,
        level=level,
        now=now or database_now(session),
    )
    return True


def _add_event(
    session: Session,
    job: Job,
    *,
    type: str,  # noqa: A002 - as above
    message: str,
    data: Mapping[str, Any],
    step: int | None = None,
    level: str,
    now: datetime,
) -> None:
    session.execute(
        _ADD_EVENT,
        {
            "job_id": job.id,
            "number": job.last_event,
            "type": type,
            "step": step,
            "level": level,
            "message": message,
            "data": dict(data),
            "created_at": now,
        },
    )


def _has_event(session: Session, job_id: str, *, type: str, step: int) -> bool:  # noqa: A002
    query = sa.select(JobEvent.number).where(
        JobEvent.job_id == job_id, JobEvent.type == type, JobEvent.step == step
    )
    return session.scalars(query).first() is not None
