"""The state machine of jobs: only this module changes a job's state and writes its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value

from store.database.connection import database_now, is_sqlite
from store.errors import IllegalTransitionError, found
from store.states import JobStatus, may_follow
from store.storage.space import end
from store.storage.unnamed import release, sizes
from store.tables import Job, JobEvent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_VERBS = {  # for the owner's requests
    JobStatus.PAUSING: "be paused: only a training job can",
    JobStatus.CANCELLING: "be cancelled",
    JobStatus.CANCELLED: "be cancelled",
}
_OF_WORK = ("worker_id", "lease_until", "claimed_at", "eta_seconds", "steps_per_second")
_JOBS = sa.Table(Job.__tablename__, Job.metadata)
_EVENTS = sa.Table(JobEvent.__tablename__, JobEvent.metadata)
_COLUMNS = {attribute.key: attribute.columns[0].name for attribute in sa.inspect(Job).column_attrs}
_UPDATE_JOB = sa.update(_JOBS).where(_JOBS.c.id == sa.bindparam("of_job"))
_ADD_JOB = sa.insert(_JOBS)
_ADD_EVENT = sa.insert(_EVENTS)
_EVENT = _ADD_EVENT.values({column: sa.bindparam(f"event_{column.name}") for column in _EVENTS.c})
_WITH_EVENT = {
    statement: statement.add_cte(_EVENT.cte("event")) for statement in (_ADD_JOB, _UPDATE_JOB)
}


@dataclass(frozen=True, kw_only=True)
class WorkEvent:
    """An event of a job's work.

    Attributes:
        type: ``status``, ``step``, …
        message: for people.
        step: of an event that a resumed job must not repeat: it is unique per job, type and step.
        data: for programs, plain JSON.
        level: ``info``, ``warn`` or ``error``.
    """

    type: str
    message: str
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    level: str = "info"


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
    rows = session.scalars(query, execution_options={"populate_existing": True})
    return found(rows.one_or_none(), "job", job_id)


def add_job(session: Session, job: Job, *, message: str) -> None:
    """Insert a new job as queued, with its first event; the session does not hold it.

    Its state is set here; other columns that are not set stay empty.
    """
    job.status, job.attempt, job.fence, job.last_event = JobStatus.QUEUED, 1, 0, 1
    event = WorkEvent(type="status", message=message, data={"status": str(job.status)})
    row = _event_row(job, event, number=job.last_event, now=job.created_at)
    state = sa.inspect(job).dict
    values = {column: state[name] for name, column in _COLUMNS.items() if name in state}
    _execute(session, _ADD_JOB, values, event=row)


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
    finished, its checkpoint too, and its reserved space is free.

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
        end(session, job.id)
        if job.checkpoint is not None:
            release(session, job.tenant_id, sizes(job.checkpoint["files"]))
    if not to.is_leased:
        values |= dict.fromkeys(_OF_WORK)
    event = WorkEvent(
        type="status",
        message=message,
        data={"status": str(to), **(data or {})},
        level="error" if to is JobStatus.FAILED else "info",
    )
    row = _event_row(job, event, number=values["last_event"], now=now)
    _execute(session, _UPDATE_JOB, {**values, "of_job": job.id}, event=row)
    for name, value in values.items():
        set_committed_value(job, name, value)


def _execute(
    session: Session,
    statement: sa.Insert | sa.Update,
    values: Mapping[str, Any],
    *,
    event: Mapping[str, Any],
) -> None:
    """Write columns of a job and an event without the session, whose bookkeeping is slow.

    On Postgres this is one statement.
    """
    connection = session.connection()
    if is_sqlite(session):
        connection.execute(statement, values)
        connection.execute(_ADD_EVENT, event)
    else:
        values_of_event = {f"event_{name}": value for name, value in event.items()}
        connection.execute(_WITH_EVENT[statement], {**values, **values_of_event})


def append_event(session: Session, job: Job, event: WorkEvent, *, now: datetime) -> None:
    """Add an event to a locked job, unless it has one of the same type and step."""
    if event.step is not None:
        same = sa.select(JobEvent.number).where(
            JobEvent.job_id == job.id, JobEvent.type == event.type, JobEvent.step == event.step
        )
        if session.scalars(same).first() is not None:
            return
    job.last_event += 1
    row = _event_row(job, event, number=job.last_event, now=now)
    session.connection().execute(_ADD_EVENT, row)


def _event_row(job: Job, event: WorkEvent, *, number: int, now: datetime) -> dict[str, Any]:
    columns = {**vars(event), "data": dict(event.data)}
    return {"job_id": job.id, "number": number, **columns, "created_at": now}
