"""Turns: which running job makes room when another tenant has waited and runs fewer jobs."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.jobs.claims import Claimant, can_run, next_in_turn
from store.jobs.workers import live_workers
from store.states import JobStatus
from store.tables import IS_LEASED, Job

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from store.jobs.claims import NextInTurn

_PATIENCE_SECONDS = 10.0  # after that, an idle worker that does not claim a job is broken


def is_turn_over(
    database: Database,
    claimant: Claimant,
    job_id: str,
    *,
    turn_seconds: float,
    max_running: int,
) -> bool:
    """Return whether the claimant's job should return to the queue, for a tenant that waits.

    It should if the claimant would get another tenant's job next, no idle worker takes it, that
    tenant runs no job or at least two fewer than this job's tenant, and this job comes first of all
    that could make room: those of the tenant with the most running jobs, of them the one claimed
    first. So the workers agree on one job, and the numbers of running jobs approach each other and
    then stay.

    Args:
        database: where the jobs are.
        claimant: the worker that asks.
        job_id: of its running job.
        turn_seconds: how long a job runs at least before it makes room.
        max_running: the limit of running jobs of a tenant without a quota of its own.
    """
    with database.read() as session:
        waiting = next_in_turn(session, claimant, max_running=max_running)
        if waiting is None:
            return False
        now = database_now(session)
        fit = {
            worker.id
            for worker in live_workers(session)
            if can_run(
                worker, waiting.model, is_pinned=waiting.is_pinned, needs_hub=waiting.needs_hub
            )
        }
        columns = (Job.id, Job.tenant_id, Job.status, Job.worker_id, Job.claimed_at)
        running = session.execute(sa.select(*columns).where(IS_LEASED)).all()
        idle = fit - {job.worker_id for job in running}
        if idle and waiting.since > now - timedelta(seconds=_PATIENCE_SECONDS):
            return False
        before = now - timedelta(seconds=turn_seconds)
        return _first_to_yield(running, waiting, workers=fit, before=before) == job_id


def _first_to_yield(
    running: Sequence[sa.Row[str, str, JobStatus, str | None, datetime | None]],
    waiting: NextInTurn,
    *,
    workers: Collection[str],
    before: datetime,
) -> str | None:
    """Return the job that makes room: it has been claimed before a time by one of the workers."""
    counts = Counter(job.tenant_id for job in running)
    candidates = [
        (-counts[job.tenant_id], job.claimed_at, job.id)
        for job in running
        if job.tenant_id != waiting.tenant_id
        and (not waiting.running or counts[job.tenant_id] >= waiting.running + 2)
        and job.status is JobStatus.TRAINING  # before that it has nothing to keep
        and job.worker_id in workers
        and job.claimed_at is not None
        and job.claimed_at <= before
    ]
    return min(candidates)[-1] if candidates else None
