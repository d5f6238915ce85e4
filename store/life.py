"""The state machine of jobs: only this module changes a job's state and writes its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value

from store.database import database_now, is_sqlite
from store.errors import IllegalTransitionError, NotFoundError
from store.states import JobStatus, may_follow
from store.tables import Job, JobEvent, Json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_VERBS = {  # for the requests of its owner
    JobStatus.PAUSING: "be paused: only a training job can",
    JobStatus.CANCELLING: "be cancelled",
    JobStatus.CANCELLED: "be cancelled",
}
_OF_WORK = ("worker_id", "lease_until", "eta_seconds", "steps_per_second")
_JOBS = sa.Table(Job.__tablename__, Job.metadata)
_EVENTS = sa.Table(JobEvent.__tablename__, JobEvent.metadata)
_UPDATE_JOB = sa.update(_JOBS).where(_JOBS.c.id == sa.bindparam("of_job"))
_ADD_JOB = sa.insert(_JOBS).values(
    status=sa.literal_column(f"'{JobStatus.QUEUED}'"),
    attempt=sa.literal_column("1"),
    fence=sa.literal_column("0"),
    last_event=sa.literal_column("1"),
)
_ADD_EVENT = sa.insert(_EVENTS)
_ADD_FIRST_EVENTS = sa.insert(_EVENTS).from_select(
    ["job_id", "number", "type", "level", "message", "data", "created_at"],
    sa.select(
        _JOBS.c.id,
        _JOBS.c.last_event,
        sa.literal("status"),
        sa.literal("info"),
        sa.bindparam("message", type_=sa.String),
        sa.literal({"status": str(JobStatus.QUEUED)}, Json),
        _JOBS.c.created_at,
    ).where(_JOBS.c.id.in_(sa.bindparam("ids", expanding=True))),
)
_UPDATE_JOB_AND_ADD_EVENT = _UPDATE_JOB.add_cte(
    _ADD_EVENT.values({column: sa.bindparam(f"event_{column.name}") for column in _EVENTS.c}).cte(
        "event"
    )
)


def lock_job(session: Session, job_id: str, *, tenant_id: str | None = None) -> Job:
    """Load a job and lock it against other writers until the transaction ends.

    Args:
        session: a write transaction. If it also locks the job's tenant, it must do that first.
        job_id: of the job.
        tenant_id: the owner; None for the server itself.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
    """
    query = sa.select(Job).where(Job.id == job_id).with_for_update()
    if tenant_id is not None:
        query = query.where(Job.tenant_id == tenant_id)
    job = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise NotFoundError("job", job_id)
    return job


def add_jobs(session: Session, jobs: Sequence[Mapping[str, Any]], *, message: str) -> None:
    """Insert queued jobs, each with its first event.

    Args:
        session: a write transaction.
        jobs: ``id`` and other columns of each, the same columns for all; other columns are empty.
        message: for people.
    """
    if not jobs:
        return
    session.execute(_ADD_JOB, list(jobs))
    session.execute(_ADD_FIRST_EVENTS, {"message": message, "ids": [job["id"] for job in jobs]})


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
    """Move a locked job to another state and write the event.

    When no worker holds the job any more, its lease and speed are cleared; when the job is
    finished, its checkpoint too.

    Args:
        session: the transaction that holds the lock.
        job: from :func:`lock_job`.
        to: the new state.
        message: for people.
        data: details, as plain JSON.
        changes: other columns of the job to change.
        now: the database's time, if the caller has just read it.

    Raises:
        IllegalTransitionError: the job's state does not allow this move.
    """
    if not may_follow(to, job.status):
        verb = _VERBS.get(to, f"become {to}")
        raise IllegalTransitionError(f"job {job.id} is {job.status} and cannot {verb}")
    now = now or database_now(session)
    values = {**(changes or {}), "status": to, "last_event": job.last_event + 1}
    if to is JobStatus.VALIDATING and job.started_at is None:
        values["started_at"] = now
    if to.is_finished:
        values |= {"finished_at": now, "checkpoint": None}
    if not to.is_leased:
        values |= dict.fromkeys(_OF_WORK)
    event = _event(
        job,
        number=values["last_event"],
        type="status",
        message=message,
        data={"status": str(to), **(data or {})},
        level="error" if to is JobStatus.FAILED else "info",
        now=now,
    )
    _write(session, job, values, event=event)


def _write(
    session: Session, job: Job, values: Mapping[str, Any], *, event: Mapping[str, Any]
) -> None:
    """Write columns of a locked job and an event without the session's slower bookkeeping.

    On Postgres this is one statement.
    """
    connection = session.connection()
    values_of_job = {**values, "of_job": job.id}
    if is_sqlite(session):
        connection.execute(_UPDATE_JOB, values_of_job)
        connection.execute(_ADD_EVENT, event)
    else:
        values_of_event = {f"event_{name}": value for name, value in event.items()}
        connection.execute(_UPDATE_JOB_AND_ADD_EVENT, {**values_of_job, **values_of_event})
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
        step: of an event that a resumed job must not repeat: it is unique per job, type and step.
        level: ``info``, ``warn`` or ``error``.
        now: the database's time, if the caller has just read it.

    Returns:
        False if the event already exists.
    """
    if step is not None and _has_event(session, job.id, type=type, step=step):
        return False
    job.last_event += 1
    event = _event(
        job,
        number=job.last_event,
        type=type,
        message=message,
        data=data or {},
        step=step,
        level=level,
        now=now or database_now(session),
    )
    session.connection().execute(_ADD_EVENT, event)
    return True


def _event(
    job: Job,
    *,
    number: int,
    type: str,  # noqa: A002 - as above
    message: str,
    data: Mapping[str, Any],
    step: int | None = None,
    level: str,
    now: datetime,
) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "number": number,
        "type": type,
        "step": step,
        "level": level,
        "message": message,
        "data": dict(data),
        "created_at": now,
    }


def _has_event(session: Session, job_id: str, *, type: str, step: int) -> bool:  # noqa: A002
    query = sa.select(JobEvent.number).where(
        JobEvent.job_id == job_id, JobEvent.type == type, JobEvent.step == step
    )
    return session.scalars(query).first() is not None
