"""Jobs as their owner sees them: posted, listed, cancelled, paused, resumed, deleted."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, undefer

from store.database import CLOCK, database_now
from store.errors import (
    IllegalTransitionError,
    NotFoundError,
    QuotaExceededError,
    StoreError,
    found,
)
from store.identifiers import new_identifier
from store.life import add_jobs, lock_job, move
from store.pages import Page, newest_first
from store.states import JobStatus
from store.tables import IS_QUEUED, Artifact, Dataset, Job, JobEvent, Tenant

# All gateways together take turns with a tenant's row, a few dozen jobs at a time: in a fifth of a
# second they cannot queue that many.
_SPACIOUS = 10_000
_SPACIOUS_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a job is made from, validated already."""

    spec: Mapping[str, Any]
    model: str
    revision: str | None
    needs_hub: bool
    dataset_id: str | None
    name: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job that is put into its tenant's queue; the fields are those of the table."""

    id: str
    tenant_id: str
    name: str | None
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]
    dataset_id: str | None
    model: str
    revision: str | None
    needs_hub: bool
    created_at: datetime


def draft(
    session: Session,
    wanted: Sequence[tuple[str, NewJob]],
    *,
    kept: Mapping[str, Dataset],
    max_queued: int,
    spacious: SpaciousQueues | None = None,
) -> list[QueuedJob | StoreError]:
    """Make jobs for the queues of their tenants, without writing them down yet.

    Args:
        session: a write transaction that holds the tenants, from ``lock_tenants``.
        wanted: whose job, and which; a tenant may want several.
        kept: their data sets, from ``keep_datasets``.
        max_queued: waiting jobs of a tenant that has no quota of its own.
        spacious: remembers from one call to the next whose jobs need not be counted.

    Returns:
        For each a job, to be given to :func:`enqueue`; or why there is none: NotFoundError or
        QuotaExceededError, as :func:`submit` raises them.
    """
    tenant_ids = list({tenant_id for tenant_id, _ in wanted})
    known = spacious.known(tenant_ids) if spacious is not None else []
    rows = session.execute(_ROOMS, {"ids": tenant_ids, "spacious": known}).all()
    rooms = {
        tenant_id: _Room(waiting=waiting, limit=max_queued if own is None else own)
        for tenant_id, own, waiting, _ in rows
    }
    if spacious is not None:
        spacious.note(
            {name: room.limit - room.waiting for name, room in rooms.items() if name not in known}
        )
    drafts: list[QueuedJob | StoreError] = []
    for tenant_id, new in wanted:
        room = rooms.get(tenant_id)
        if room is None:
            drafts.append(NotFoundError("tenant", tenant_id))
        elif new.dataset_id is not None and not _owns(tenant_id, kept.get(new.dataset_id)):
            drafts.append(NotFoundError("dataset", new.dataset_id))
        elif room.waiting >= room.limit:
            drafts.append(
                QuotaExceededError(
                    f"{room.waiting:,} jobs wait already; the tenant's quota max_queued is "
                    f"{room.limit:,}"
                )
            )
        else:
            room.waiting += 1
            drafts.append(_draft_one(tenant_id, new, now=rows[0].now))
    return drafts


_ROOMS = sa.select(
    Tenant.id,
    Tenant.max_queued,
    sa.case(
        (Tenant.id.in_(sa.bindparam("spacious", expanding=True)), 0),
        else_=sa.select(sa.func.count())
        .select_from(Job)
        .where(Job.tenant_id == Tenant.id, IS_QUEUED)
        .scalar_subquery(),
    ),
    CLOCK.label("now"),
).where(Tenant.id.in_(sa.bindparam("ids", expanding=True)))


class SpaciousQueues:
    """Remembers for a moment which tenants are so far from their quota that it cannot be reached.

    Counting ten thousand waiting jobs takes as long as queueing a hundred, and with smaller quotas
    nothing is remembered: all are counted, each time.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def known(self, tenant_ids: Collection[str]) -> list[str]:
        """Give those of some tenants that are far from their quota."""
        now = time.monotonic()
        return [name for name in tenant_ids if self._until.get(name, 0.0) > now]

    def note(self, rooms: Mapping[str, int]) -> None:
        """Take note of how many more jobs may wait, of tenants that were counted just now."""
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        for name, room in rooms.items():
            if room >= _SPACIOUS:
                self._until[name] = now + _SPACIOUS_SECONDS


@dataclass
class _Room:
    """A tenant's queue: how many jobs are in it, and may be."""

    waiting: int
    limit: int


def _owns(tenant_id: str, dataset: Dataset | None) -> bool:
    return dataset is not None and dataset.tenant_id == tenant_id


def _draft_one(tenant_id: str, new: NewJob, *, now: datetime) -> QueuedJob:
    return QueuedJob(
        id=new_identifier("job"),
        tenant_id=tenant_id,
        name=new.name,
        metadata=new.metadata,
        spec=new.spec,
        dataset_id=new.dataset_id,
        model=new.model,
        revision=new.revision,
        needs_hub=new.needs_hub,
        created_at=now,
    )


def enqueue(session: Session, drafts: Sequence[QueuedJob]) -> None:
    """Write drafted jobs down; publish a token for each after the commit.

    Args:
        session: the transaction in which they were drafted.
        drafts: from :func:`draft`; any of them may be left out.
    """
    rows = [{**vars(job), "token_at": job.created_at} for job in drafts]
    add_jobs(session, rows, message="the job is queued")


def get_job(session: Session, tenant_id: str, job_id: str, *, with_heads: bool = False) -> Job:
    """Load a tenant's job.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
    """
    query = sa.select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    if with_heads:
        query = query.options(undefer(Job.heads))
    return found(session.scalars(query).one_or_none(), "job", job_id)


def list_jobs(
    session: Session, tenant_id: str, *, status: JobStatus | None, after: str | None, limit: int
) -> Page[Job]:
    """Take a page of a tenant's jobs, newest first.

    Raises:
        NotFoundError: ``after`` is none of them.
    """
    query = sa.select(Job).where(Job.tenant_id == tenant_id)
    if status is not None:
        query = query.where(Job.status == status)
    return newest_first(session, query, Job, after=after, limit=limit)


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a job: at once where nobody works on it, else at its worker's next step.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
        IllegalTransitionError: it is finished, or being cancelled.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    if job.status in (JobStatus.QUEUED, JobStatus.PAUSED):
        move(session, job, JobStatus.CANCELLED, message="cancelled by its owner")
    else:
        move(session, job, JobStatus.CANCELLING, message="its owner asks to cancel")
    return job


def pause(session: Session, tenant_id: str, job_id: str) -> Job:
    """Ask the worker of a training job to stop at its next step, with a checkpoint.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
        IllegalTransitionError: it is not training.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    move(session, job, JobStatus.PAUSING, message="its owner asks to pause")
    return job


def resume(session: Session, tenant_id: str, job_id: str) -> Job:
    """Put a paused job back into the queue; publish a token after the commit.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
        IllegalTransitionError: it is not paused.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    if job.status is not JobStatus.PAUSED:
        raise IllegalTransitionError(f"job {job.id} is {job.status} and cannot be resumed")
    now = database_now(session)
    message, changes = "its owner resumes it", {"token_at": now}
    move(session, job, JobStatus.QUEUED, message=message, changes=changes, now=now)
    return job


def delete(session: Session, tenant_id: str, job_id: str) -> None:
    """Remove a finished job with its events and artifacts; the blobs go when nothing names them.

    Raises:
        NotFoundError: there is none, or it is another tenant's.
        IllegalTransitionError: it is not finished.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    if not job.status.is_finished:
        raise IllegalTransitionError(f"job {job.id} is {job.status}: cancel it first")
    for table in (JobEvent, Artifact):
        session.execute(sa.delete(table).where(table.job_id == job_id))
    session.delete(job)


def list_events(
    session: Session, job: Job, *, after: int = 0, limit: int
) -> tuple[Sequence[JobEvent], bool]:
    """Take a page of a job's events, oldest first.

    Args:
        session: a transaction.
        job: whose.
        after: number of the last event before the page.
        limit: events of the page.

    Returns:
        The events, and whether there are more.
    """
    query = (
        sa.select(JobEvent)
        .where(JobEvent.job_id == job.id, JobEvent.number > after)
        .order_by(JobEvent.number)
        .limit(limit + 1)
    )
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


def list_artifacts(session: Session, job: Job) -> Sequence[Artifact]:
    """List the encodings of a job's head delta; none before it has succeeded."""
    return artifacts_by_job(session, [job]).get(job.id, ())


def artifacts_by_job(session: Session, jobs: Sequence[Job]) -> Mapping[str, Sequence[Artifact]]:
    """List the encodings of several jobs' head deltas; a job that has none is missing."""
    finished = [job.id for job in jobs if job.status is JobStatus.SUCCEEDED]
    if not finished:
        return {}
    query = sa.select(Artifact).where(Artifact.job_id.in_(finished)).order_by(Artifact.encoding)
    found: dict[str, list[Artifact]] = {}
    for artifact in session.scalars(query):
        found.setdefault(artifact.job_id, []).append(artifact)
    return found


class JobDelta(NamedTuple):
    """A job, and the head delta that it may have made."""

    job_id: str
    status: JobStatus
    model: str
    revision: str | None
    sha256: str | None  # of the delta; None where there is none


def find_deltas(
    session: Session, tenant_id: str, job_ids: Collection[str], *, encoding: str
) -> Sequence[JobDelta]:
    """Find several of a tenant's jobs and what they made in one encoding, in one query.

    Args:
        session: a transaction.
        tenant_id: whose jobs they must be.
        job_ids: which.
        encoding: of the head deltas.

    Returns:
        One for each job that is there, in no order; those of other tenants are not.
    """
    rows = session.execute(
        _JOB_DELTAS, {"tenant_id": tenant_id, "ids": list(job_ids), "encoding": encoding}
    )
    return [JobDelta(*row) for row in rows]


_JOB_DELTAS = (
    sa.select(Job.id, Job.status, Job.model, Job.revision, Artifact.sha256)
    .outerjoin(
        Artifact,
        sa.and_(Artifact.job_id == Job.id, Artifact.encoding == sa.bindparam("encoding")),
    )
    .where(
        Job.tenant_id == sa.bindparam("tenant_id"),
        Job.id.in_(sa.bindparam("ids", expanding=True)),
    )
)


def count_jobs(session: Session, tenant_id: str) -> Mapping[JobStatus, int]:
    """Count a tenant's jobs by status; one that no job has is missing."""
    query = sa.select(Job.status, sa.func.count()).where(Job.tenant_id == tenant_id)
    return dict(session.execute(query.group_by(Job.status)).all())
