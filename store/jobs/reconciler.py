"""The reconciler: every worker takes back dead workers' jobs and replaces lost tokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import Database, database_now, is_sqlite
from store.database.pages import forget_deleted
from store.errors import NotFoundError
from store.idempotency import KEPT
from store.jobs.leases import MAX_ATTEMPTS, fail
from store.jobs.life import lock_job, move
from store.jobs.telemetry import LEASE_LOSSES, count
from store.jobs.workers import LIVE_SECONDS
from store.states import STOPPING, JobStatus
from store.tables import IS_LEASED, IS_QUEUED, IdempotencyRecord, Job, Worker

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

_LOCK = 0x48694669  # Postgres's advisory lock for this purpose
_FORGOTTEN = timedelta(days=1)  # workers not seen for this long are deleted
_PAGED = timedelta(days=1)  # how long callers may take from one page of a list to the next
_TOKEN_SECONDS = 10.0  # a token that no worker takes in this time counts as lost


def take_back_expired(database: Database, *, before: datetime) -> int:
    """Take back the jobs whose lease has expired; later writes of their workers are refused.

    Only one process does this at a time; the others skip it.

    Args:
        database: where the jobs are.
        before: a time at which the database answered; a lease that expired later may have expired
            because the database did not answer.

    Returns:
        The number of jobs taken back.
    """
    expired = sa.select(Job.id).where(IS_LEASED, Job.lease_until < before)
    # Every worker asks every few seconds: only one that finds something may lock the database.
    with database.read() as session:
        if session.scalars(expired.limit(1)).first() is None:
            return 0
    with database.write() as session:
        if not _lock(session):
            return 0
        jobs = session.scalars(expired).all()
        return _take_back_all(session, jobs, now=database_now(session), before=before)


def take_back_from(database: Database, worker_ids: Collection[str]) -> int:
    """Take back the jobs of workers known to be dead, and remove these workers.

    This does not wait for their leases to expire.

    Returns:
        The number of jobs taken back.
    """
    with database.write() as session:
        if not is_sqlite(session):
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        now = database_now(session)
        theirs = sa.update(Job).where(IS_LEASED, Job.worker_id.in_(worker_ids))
        expired = theirs.values(lease_until=now - timedelta(seconds=1)).returning(Job.id)
        jobs = session.scalars(expired).all()
        session.execute(sa.delete(Worker).where(Worker.id.in_(worker_ids)))
        return _take_back_all(session, jobs, now=now, before=now)


def renew_tokens(database: Database) -> int:
    """Count the tokens to replace: one for each idle worker while any job's token is too old.

    One token per job is not enough: a worker without the job's backbone may take it. Only one
    process does this at a time. The caller must publish the tokens.
    """
    with database.read() as session:  # as above
        lost = sa.select(Job.id).where(_has_lost_token(database_now(session)))
        if session.scalars(lost.limit(1)).first() is None:
            return 0
    with database.write() as session:
        if not _lock(session):
            return 0
        now = database_now(session)
        idle = _count_idle(session, since=now - timedelta(seconds=LIVE_SECONDS))
        if not idle:
            return 0
        waiting = session.scalars(
            sa.select(Job)
            .where(_has_lost_token(now))
            .order_by(Job.token_at)
            .limit(idle)
            .with_for_update(skip_locked=True)
        ).all()
        for job in waiting:
            job.token_at = now
        return idle if waiting else 0


def _has_lost_token(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(IS_QUEUED, Job.token_at <= now - timedelta(seconds=_TOKEN_SECONDS))


def _count_idle(session: Session, *, since: datetime) -> int:
    busy = sa.select(Job.worker_id).where(IS_LEASED, Job.worker_id.is_not(None))
    query = sa.select(sa.func.count()).select_from(Worker)
    return session.scalars(query.where(Worker.seen_at >= since, Worker.id.not_in(busy))).one()


def forget_old_records(database: Database) -> None:
    """Delete old records: responses, places of deleted rows, workers not seen for long."""
    with database.write() as session:
        now = database_now(session)
        session.execute(
            sa.delete(IdempotencyRecord).where(IdempotencyRecord.created_at < now - KEPT)
        )
        session.execute(sa.delete(Worker).where(Worker.seen_at < now - _FORGOTTEN))
        forget_deleted(session, before=now - _PAGED)


def _lock(session: Session) -> bool:
    if is_sqlite(session):
        return True  # SQLite has one write transaction at a time anyway
    return bool(session.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK))))


def _take_back_all(
    session: Session, job_ids: Collection[str], *, now: datetime, before: datetime
) -> int:
    taken_back = sum(_take_back(session, job_id, now=now, before=before) for job_id in job_ids)
    if taken_back:
        count(session, LEASE_LOSSES, by=taken_back)
    return taken_back


def _take_back(session: Session, job_id: str, *, now: datetime, before: datetime) -> bool:
    """Stop a dead worker's job as requested, or queue it again; return whether it was lost."""
    try:
        job = lock_job(session, job_id)
    except NotFoundError:  # it ended meanwhile and was deleted
        return False
    if not job.status.is_leased or job.lease_until is None or job.lease_until >= before:
        return False
    stopped = STOPPING.get(job.status)
    if stopped is not None:
        move(session, job, stopped, message=f"{stopped}; its worker was lost", now=now)
    elif job.attempt >= MAX_ATTEMPTS:
        message = f"its worker was lost {job.attempt} times without a newer checkpoint"
        fail(session, job, code="worker_lost", message=message, now=now)
    else:
        message = "its worker was lost; the job is queued again"
        changes = {
            "attempt": job.attempt + 1,
            "token_at": now - timedelta(seconds=_TOKEN_SECONDS),
        }
        move(session, job, JobStatus.QUEUED, message=message, changes=changes, now=now)
    return True
