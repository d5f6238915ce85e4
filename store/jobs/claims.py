"""Claims: choose a worker's next job, fairly between tenants."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import load_only

from store.database.connection import CLOCK, Database
from store.jobs.life import move
from store.states import JobStatus
from store.tables import IS_LEASED, IS_QUEUED, Job, JobEvent, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.tables import Worker

# Literals, not parameters: only then can Postgres plan the queries once and reuse the plan.
_ZERO, _ONE = (sa.literal_column(number, sa.Integer) for number in "01")
_TENANTS = sa.Table(Tenant.__tablename__, Tenant.metadata)
_NOTE_CLAIM = (
    sa.update(_TENANTS)
    .where(_TENANTS.c.id == sa.bindparam("of_tenant"))
    .values(last_claim_at=sa.bindparam("now"))
)
_WAIT_SECONDS = (0.002, 0.01)  # about the duration of another worker's claim


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """A worker that wants a job.

    Attributes:
        worker_id: its row in the table of workers.
        backbones: ids of the backbones that it can load.
        allows_hub: whether it may load a backbone from the hub.
    """

    worker_id: str
    backbones: frozenset[str]
    allows_hub: bool = False


def can_run(worker: Worker, model: str, *, is_pinned: bool, needs_hub: bool) -> bool:
    """Return whether a worker can run a job with these columns: the rule of ``_claimable``."""
    if worker.allows_hub:
        return model in worker.backbones or is_pinned
    return model in worker.backbones and not needs_hub


@dataclass(frozen=True, kw_only=True)
class NextInTurn:
    """The job that a claimant would get next.

    Attributes:
        running: how many jobs its tenant runs.
        since: when it was queued.
    """

    tenant_id: str
    running: int
    model: str
    is_pinned: bool
    needs_hub: bool
    since: datetime


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A claimed job, as its worker gets it.

    Attributes:
        fence: sent with every write to prove that the claim is still valid.
        checkpoint: where to resume, from the last worker; None to start from the beginning.
        ran_seconds: how long earlier claims ran.
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
    ran_seconds: float


def claim_next(
    database: Database, claimant: Claimant, *, lease_seconds: float, max_running: int
) -> ClaimedJob | None:
    """Claim the next job that this worker can run, in one transaction.

    The tenant with the fewest running jobs comes first; among equals, the one with the oldest last
    claim. Of its jobs the oldest is taken.

    Args:
        database: where the jobs are.
        claimant: the worker.
        lease_seconds: how long the worker may be silent.
        max_running: the limit of running jobs of a tenant without a quota of its own.

    Returns:
        The job, now ``validating`` and leased to the worker; None if there is no job for it.
    """
    while True:
        with database.write() as session:
            turn = session.execute(_lock_turn(claimant), {"max_running": max_running}).first()
            if turn is None or turn.running:  # if none are running, no other comes first
                first = session.execute(_in_turn(claimant), {"max_running": max_running}).first()
                if first is None:
                    return None
                if turn is not None and first.running < turn.running:
                    turn = None  # another worker is claiming for that tenant: wait for it
            if turn is not None:
                found = session.execute(_oldest(claimant), turn._asdict()).first()
                if found is not None:
                    job, now = found
                    return _take(session, job, claimant, now=now, lease_seconds=lease_seconds)
        time.sleep(random.uniform(*_WAIT_SECONDS))  # noqa: S311 - spreads claimants, not a secret


def next_in_turn(session: Session, claimant: Claimant, *, max_running: int) -> NextInTurn | None:
    """Return the job that :func:`claim_next` would claim now, without claiming it."""
    turn = session.execute(_in_turn(claimant), {"max_running": max_running}).first()
    if turn is None:
        return None
    job = session.execute(_first_waiting(claimant), {"tenant_id": turn.tenant_id}).first()
    return None if job is None else NextInTurn(**turn._asdict(), **job._asdict())


@lru_cache(maxsize=8)
def _first_waiting(claimant: Claimant) -> sa.Select[str, bool, bool, datetime]:
    """Select a tenant's oldest job, and when its last event queued it."""
    is_pinned = Job.revision.is_not(None).label("is_pinned")
    return (
        sa.select(Job.model, is_pinned, Job.needs_hub, JobEvent.created_at.label("since"))
        .join(JobEvent, (JobEvent.job_id == Job.id) & (JobEvent.number == Job.last_event))
        .where(Job.tenant_id == sa.bindparam("tenant_id"), _claimable(claimant))
        .order_by(Job.created_at, Job.id)
        .limit(_ONE)
    )


def _claimable(claimant: Claimant) -> sa.ColumnElement[bool]:
    # Not with IN: SQLAlchemy would render its list into the statement each time.
    models = (Job.model == backbone for backbone in sorted(claimant.backbones))
    has_model = sa.or_(sa.false(), *models)
    if claimant.allows_hub:
        # A model from the hub is pinned to a commit. Any other model must be local, even if the
        # job's data comes from the hub.
        return sa.and_(IS_QUEUED, has_model | Job.revision.is_not(None))
    return sa.and_(IS_QUEUED, has_model, ~Job.needs_hub)


@lru_cache(maxsize=8)
def _in_turn(claimant: Claimant) -> sa.Select[str, int]:
    """Select the tenants with a job for the claimant and quota for it, the next in turn first.

    Tenants are sorted before their jobs are searched. The first ones usually have a job, so few of
    many hundreds are searched. OFFSET 0 keeps Postgres from reversing the two steps.
    """
    counts = (
        sa.select(Job.tenant_id, sa.func.count().label("running"))
        .where(IS_LEASED)
        .group_by(Job.tenant_id)
        .subquery()
    )
    running = sa.func.coalesce(counts.c.running, _ZERO)
    order = (
        sa.select(Tenant.id, running.label("running"), Tenant.last_claim_at)
        .outerjoin(counts, counts.c.tenant_id == Tenant.id)
        .where(
            running < sa.func.coalesce(Tenant.max_running, sa.bindparam("max_running")),
            Tenant.suspended_at.is_(None),
        )
        .order_by(running, Tenant.last_claim_at.nulls_first(), Tenant.id)
        .offset(_ZERO)
        .subquery("in_order")
    )
    waiting = sa.select(1).where(Job.tenant_id == order.c.id, _claimable(claimant)).offset(_ZERO)
    return (
        sa.select(Tenant.id.label("tenant_id"), order.c.running)
        .join(order, order.c.id == Tenant.id)
        .where(waiting.exists())
        .order_by(order.c.running, order.c.last_claim_at.nulls_first(), order.c.id)
        .limit(_ONE)
    )


@lru_cache(maxsize=8)
def _lock_turn(claimant: Claimant) -> sa.Select[str, int]:
    """Lock the next tenant in turn for which no other worker is claiming right now."""
    return _in_turn(claimant).with_for_update(of=Tenant, skip_locked=True)


@lru_cache(maxsize=8)
def _oldest(claimant: Claimant) -> sa.Select[Job, datetime]:
    """Select a locked tenant's oldest job, unless the tenant's running jobs have increased.

    The jobs are counted again under the lock: the first count may be older than another claim.
    """
    running = (
        sa.select(sa.func.count())
        .select_from(Job)
        .where(Job.tenant_id == sa.bindparam("tenant_id"), IS_LEASED)
        .scalar_subquery()
    )
    return (
        sa.select(Job, CLOCK)
        .options(
            load_only(  # each further column costs time
                *(Job.tenant_id, Job.status, Job.started_at, Job.attempt, Job.fence),
                *(Job.spec, Job.dataset_id, Job.model, Job.revision),
                *(Job.checkpoint, Job.ran_seconds, Job.last_event),
            )
        )
        .where(
            Job.tenant_id == sa.bindparam("tenant_id"),
            _claimable(claimant),
            running <= sa.bindparam("running"),
        )
        .order_by(Job.created_at, Job.id)
        .limit(_ONE)
        .with_for_update(of=Job, skip_locked=True)
    )


def _take(
    session: Session, job: Job, claimant: Claimant, *, now: datetime, lease_seconds: float
) -> ClaimedJob:
    session.connection().execute(_NOTE_CLAIM, {"of_tenant": job.tenant_id, "now": now})
    changes = {
        "fence": job.fence + 1,
        "worker_id": claimant.worker_id,
        "claimed_at": now,
        "lease_until": now + timedelta(seconds=lease_seconds),
    }
    message = "a worker has taken the job"
    move(session, job, JobStatus.VALIDATING, message=message, changes=changes, now=now)
    return ClaimedJob(**{field.name: getattr(job, field.name) for field in fields(ClaimedJob)})
