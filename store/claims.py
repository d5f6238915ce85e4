"""Claims: which job a worker gets next, fairly by tenant."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.database import Database, database_now
from store.life import move
from store.states import LEASED, JobStatus
from store.tables import Job, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_WAIT_SECONDS = (0.002, 0.01)  # about what a claim takes that holds the tenant we want


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """A worker that asks for a job.

    Attributes:
        worker_id: its row in the table of workers.
        backbones: ids of the backbones that it has.
        allows_hub: whether it may load a backbone from the hub.
    """

    worker_id: str
    backbones: frozenset[str]
    allows_hub: bool = False


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job as its worker gets it.

    Attributes:
        fence: proves in every write that the claim still stands.
        checkpoint: where to go on, as the last worker left it; None from the start.
    """

    id: str
    tenant_id: str
    fence: int
    attempt: int
    spec: Mapping[str, Any]
    dataset_id: str | None
    model: str
    revision: str | None
    checkpoint: Mapping[str, Any] | None


def claim_next(
    database: Database, claimant: Claimant, *, lease_seconds: float, max_running: int
) -> ClaimedJob | None:
    """Claim the next job that this worker can run, in one transaction.

    The tenant with the fewest running jobs comes first, then the one whose last claim is longest
    ago, and of its jobs the oldest.

    Args:
        database: where the jobs are.
        claimant: the worker.
        lease_seconds: how long it may be silent.
        max_running: running jobs of a tenant that has no quota of its own.

    Returns:
        The job, now ``validating`` and leased to the worker; None where there is none for it.
    """
    while True:
        with database.write() as session:
            best = _best_tenant(session, claimant, max_running=max_running)
            if best is not None:
                tenant, running = best
                if _count_running(session, tenant.id) <= running:
                    job = _oldest_job(session, tenant, claimant)
                    if job is not None:
                        return _take(session, job, tenant, claimant, lease_seconds=lease_seconds)
            elif not _has_claimable(session, claimant, max_running=max_running):
                return None
        time.sleep(random.uniform(*_WAIT_SECONDS))  # noqa: S311 - spreads claimants, no secret


def _claimable(claimant: Claimant) -> sa.ColumnElement[bool]:
    is_ours = Job.model.in_(claimant.backbones) & ~Job.needs_hub
    return (Job.status == JobStatus.QUEUED) & (
        is_ours | Job.needs_hub if claimant.allows_hub else is_ours
    )


def _in_turn(claimant: Claimant, *, max_running: int) -> sa.Select[Tenant, int]:
    """Select the tenants with a job for the claimant and room for it, the next in turn first."""
    counts = (
        sa.select(Job.tenant_id, sa.func.count().label("running"))
        .where(Job.status.in_(LEASED))
        .group_by(Job.tenant_id)
        .subquery()
    )
    running = sa.func.coalesce(counts.c.running, 0)
    waiting = sa.exists().where(Job.tenant_id == Tenant.id, _claimable(claimant))
    return (
        sa.select(Tenant, running)
        .outerjoin(counts, counts.c.tenant_id == Tenant.id)
        .where(waiting, running < sa.func.coalesce(Tenant.max_running, max_running))
        .order_by(running, Tenant.last_claim_at.nulls_first(), Tenant.id)
        .limit(1)
    )


def _best_tenant(
    session: Session, claimant: Claimant, *, max_running: int
) -> tuple[Tenant, int] | None:
    """Lock the next tenant in turn for which nobody else is claiming at this moment."""
    query = _in_turn(claimant, max_running=max_running)
    row = session.execute(query.with_for_update(of=Tenant, skip_locked=True)).first()
    return None if row is None else (row[0], row[1])


def _has_claimable(session: Session, claimant: Claimant, *, max_running: int) -> bool:
    return session.execute(_in_turn(claimant, max_running=max_running)).first() is not None


def _count_running(session: Session, tenant_id: str) -> int:
    """Count again under the lock: the first count may be from before another claim."""
    query = sa.select(sa.func.count()).where(Job.tenant_id == tenant_id, Job.status.in_(LEASED))
    return session.scalars(query).one()


def _oldest_job(session: Session, tenant: Tenant, claimant: Claimant) -> Job | None:
    return session.scalars(
        sa.select(Job)
        .where(Job.tenant_id == tenant.id, _claimable(claimant))
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()


def _take(
    session: Session, job: Job, tenant: Tenant, claimant: Claimant, *, lease_seconds: float
) -> ClaimedJob:
    now = database_now(session)
    job.fence += 1
    job.worker_id = claimant.worker_id
    job.lease_until = now + timedelta(seconds=lease_seconds)
    tenant.last_claim_at = now
    move(session, job, JobStatus.VALIDATING, message="a worker has taken the job", now=now)
    return ClaimedJob(
        id=job.id,
        tenant_id=job.tenant_id,
        fence=job.fence,
        attempt=job.attempt,
        spec=job.spec,
        dataset_id=job.dataset_id,
        model=job.model,
        revision=job.revision,
        checkpoint=job.checkpoint,
    )
