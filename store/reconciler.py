"""What every worker sees to now and then: dead workers' jobs, lost tokens, old records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database import Database, database_now, is_sqlite
from store.idempotency import KEPT
from store.leases import MAX_ATTEMPTS, fail
from store.life import lock_job, move
from store.states import JobStatus
from store.tables import IS_LEASED, IS_QUEUED, IdempotencyRecord, Job, Worker
from store.telemetry import LEASE_LOSSES, count

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_LOCK = 0x48694669  # of this one purpose, on Postgres
_FORGOTTEN = timedelta(days=1)  # a worker that was not seen for so long
_TOKEN_SECONDS = 10.0  # a token that nobody took in this time is taken for lost


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What was done: jobs taken back from dead workers, and tokens to publish."""

    taken_back: int = 0
    tokens: int = 0


def reconcile(database: Database, *, live_seconds: float) -> Reconciled:
    """Take back jobs whose lease has run out, and count the tokens that seem to be lost.

    Only one process does it at a time; for the others there is nothing to do.

    Args:
        database: where the jobs are.
        live_seconds: a worker not seen for so long counts as dead.

    Returns:
        What was done; the caller publishes ``tokens`` tokens.
    """
    with database.write() as session:
        if not _lock(session):
            return Reconciled()
        now = database_now(session)
        expired = session.scalars(sa.select(Job.id).where(IS_LEASED, Job.lease_until < now)).all()
        taken_back = sum(_take_back(session, job_id, now=now) for job_id in expired)
        if taken_back:
            count(session, LEASE_LOSSES, by=taken_back)
        session.execute(
            sa.delete(IdempotencyRecord).where(IdempotencyRecord.created_at < now - KEPT)
        )
        session.execute(sa.delete(Worker).where(Worker.seen_at < now - _FORGOTTEN))
        tokens = _lost_tokens(session, now=now, live_seconds=live_seconds)
        return Reconciled(taken_back=taken_back, tokens=tokens)


def _lock(session: Session) -> bool:
    if is_sqlite(session):
        return True  # a write transaction is alone there anyway
    return bool(session.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK))))


def _take_back(session: Session, job_id: str, *, now: datetime) -> bool:
    """Finish what a dead worker was asked to do, or queue its job anew; tell whether it is dead."""
    job = lock_job(session, job_id)
    if not job.status.is_leased or job.lease_until is None or job.lease_until >= now:
        return False
    if job.status is JobStatus.CANCELLING:
        move(session, job, JobStatus.CANCELLED, message="cancelled; its worker was lost", now=now)
    elif job.status is JobStatus.PAUSING:
        move(session, job, JobStatus.PAUSED, message="paused; its worker was lost", now=now)
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


def _lost_tokens(session: Session, *, now: datetime, live_seconds: float) -> int:
    """Count waiting jobs whose token is old, at most as many as there are idle workers."""
    alive = session.scalars(
        sa.select(sa.func.count()).where(Worker.seen_at >= now - timedelta(seconds=live_seconds))
    ).one()
    busy = session.scalars(sa.select(sa.func.count()).select_from(Job).where(IS_LEASED)).one()
    if alive <= busy:
        return 0
    waiting = session.scalars(
        sa.select(Job)
        .where(
            IS_QUEUED,
            Job.token_at <= now - timedelta(seconds=_TOKEN_SECONDS),
        )
        .order_by(Job.token_at)
        .limit(alive - busy)
        .with_for_update(skip_locked=True)
    ).all()
    for job in waiting:
        job.token_at = now
    return len(waiting)
