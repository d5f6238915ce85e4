"""Metrics of jobs and workers, computed from the tables on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now, insert_into
from store.jobs.claims import can_run
from store.jobs.workers import live_workers
from store.states import JobStatus
from store.tables import IS_LEASED, IS_QUEUED, Counter, Job, JobEvent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.tables import Worker

LEASE_LOSSES = "lease_losses"
ENGINE_CRASHES = "engine_crashes"


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """The state of the queue at one moment.

    Attributes:
        jobs_by_state: the number of jobs in each state, for every state.
        oldest_queued_seconds: how long the oldest waiting job has waited; 0 if none waits.
        steps_per_second: the sum over all training jobs.
        jobs_without_worker: waiting jobs that no live worker can run.
        live_workers: workers seen recently.
        counters: monotonic counters, for every name.
    """

    jobs_by_state: Mapping[str, int]
    oldest_queued_seconds: float
    steps_per_second: float
    jobs_without_worker: int
    live_workers: int
    counters: Mapping[str, int]


def measure(session: Session) -> Telemetry:
    """Compute all metrics."""
    states = session.execute(sa.select(Job.status, sa.func.count()).group_by(Job.status)).all()
    counts = {str(status): count for status, count in states}
    # A waiting job's last event is the one that queued it: posted, resumed, or handed back.
    oldest: datetime | None = session.scalars(
        sa.select(sa.func.min(JobEvent.created_at))
        .join(Job, (Job.id == JobEvent.job_id) & (Job.last_event == JobEvent.number))
        .where(IS_QUEUED)
    ).one()
    speed = session.scalars(sa.select(sa.func.sum(Job.steps_per_second)).where(IS_LEASED)).one()
    counters = {row.name: row.value for row in session.scalars(sa.select(Counter))}
    workers = live_workers(session)
    waited = 0.0 if oldest is None else (database_now(session) - oldest).total_seconds()
    return Telemetry(
        jobs_by_state={str(status): counts.get(str(status), 0) for status in JobStatus},
        oldest_queued_seconds=max(0.0, waited),
        steps_per_second=float(speed or 0.0),
        jobs_without_worker=_count_without_worker(session, workers),
        live_workers=len(workers),
        counters={name: counters.get(name, 0) for name in (LEASE_LOSSES, ENGINE_CRASHES)},
    )


def _count_without_worker(session: Session, workers: Sequence[Worker]) -> int:
    is_pinned = Job.revision.is_not(None)
    waiting = (
        sa.select(Job.model, is_pinned, Job.needs_hub, sa.func.count())
        .where(IS_QUEUED)
        .group_by(Job.model, is_pinned, Job.needs_hub)
    )
    return sum(
        count
        for model, pinned, needs_hub, count in session.execute(waiting)
        if not any(
            can_run(worker, model, is_pinned=pinned, needs_hub=needs_hub) for worker in workers
        )
    )


def count(session: Session, name: str, *, by: int = 1) -> None:
    """Increment ``LEASE_LOSSES`` or ``ENGINE_CRASHES`` in the transaction of the counted event."""
    added = insert_into(session, Counter).values(name=name, value=by)
    session.connection().execute(
        added.on_conflict_do_update(index_elements=["name"], set_={"value": Counter.value + by})
    )
