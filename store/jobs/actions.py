"""The owner's actions on jobs: submit, list, cancel, pause, resume, delete.

Those on one job raise NotFoundError if it does not exist, or belongs to another tenant.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, undefer

from store.database.connection import CLOCK, database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, delete_listed, matching, newest_first
from store.datasets import keep_dataset
from store.errors import IllegalTransitionError, QuotaExceededError, found
from store.jobs.life import add_job, lock_job, move
from store.states import JobStatus
from store.storage.space import reserve_for_job
from store.storage.unnamed import release
from store.tables import IS_QUEUED, Artifact, Job, JobEvent
from store.tenants import get_tenant, lock_tenant, quota

_LONG = (Job.spec, Job.meta)  # columns that a tenant can make long


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """The columns of a new job that its owner decides, already validated."""

    spec: dict[str, Any]
    model: str
    revision: str | None
    needs_hub: bool
    dataset_id: str | None
    name: str | None
    meta: dict[str, Any]
    warnings: Sequence[Mapping[str, Any]] = ()


def submit(
    session: Session,
    tenant_id: str,
    new: NewJob,
    *,
    max_queued: int,
    max_bytes: int = sys.maxsize,
    artifact_bytes: int = 0,
) -> Job:
    """Put a job into its tenant's queue; publish a token after the commit.

    The tenant and the data set stay locked until the transaction ends.

    Args:
        session: a write transaction.
        tenant_id: the owner.
        new: the job.
        max_queued: the quota of waiting jobs of a tenant without its own.
        max_bytes: likewise, of stored bytes.
        artifact_bytes: the estimated size of what the job will leave; 0 if unknown.

    Raises:
        NotFoundError: the tenant or data set does not exist, or belongs to another tenant.
        QuotaExceededError: the tenant's queue is full, or its quota of bytes has no room for the
            artifacts.
    """
    tenant = lock_tenant(session, tenant_id)
    if new.dataset_id is not None:
        keep_dataset(session, tenant_id, new.dataset_id)
    limit = quota(tenant.max_queued, default=max_queued)
    waiting, now = session.execute(_COUNT_WAITING, {"tenant_id": tenant_id}).one()
    if waiting >= limit:
        raise QuotaExceededError(
            f"{waiting:,} jobs are already waiting; the tenant's quota max_queued is {limit:,}"
        )
    identifier = new_identifier("job")
    room = quota(tenant.max_bytes, default=max_bytes)
    reserve_for_job(session, identifier, tenant_id=tenant_id, size=artifact_bytes, limit=room)
    columns = {**vars(new), "warnings": [dict(warning) for warning in new.warnings]}
    job = Job(id=identifier, tenant_id=tenant_id, **columns, created_at=now, token_at=now)
    add_job(session, job, message="the job is queued")
    return job


_COUNT_WAITING = sa.select(
    sa.select(sa.func.count())
    .select_from(Job)
    .where(Job.tenant_id == sa.bindparam("tenant_id"), IS_QUEUED)
    .scalar_subquery(),
    CLOCK,
)


def get_job(session: Session, tenant_id: str, job_id: str, *, with_heads: bool = False) -> Job:
    """Load a tenant's job."""
    query = sa.select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    if with_heads:
        query = query.options(undefer(Job.heads))
    return found(session.scalars(query).one_or_none(), "job", job_id)


def list_jobs(
    session: Session,
    tenant_id: str,
    *,
    status: JobStatus | None,
    name: str | None = None,
    after: str | None,
    limit: int,
) -> Page[Job]:
    """Return a page of a tenant's jobs, newest first: those with that status and that name.

    Raises:
        NotFoundError: ``after`` was never one of them.
    """
    query = sa.select(Job).where(Job.tenant_id == tenant_id)
    filters = matching((Job.status, status), (Job.name, name))
    return newest_first(
        session,
        query,
        Job,
        after=after,
        limit=limit,
        tenant_id=tenant_id,
        filters=filters,
        long=_LONG,
    )


def list_all_jobs(
    session: Session,
    *,
    tenant_id: str | None,
    status: JobStatus | None,
    after: str | None,
    limit: int,
) -> Page[Job]:
    """Return a page of all tenants' jobs, or of one tenant's, newest first; for administrators.

    Raises:
        NotFoundError: the tenant does not exist, or ``after`` was never one of all jobs.
    """
    if tenant_id is not None:
        get_tenant(session, tenant_id)
    filters = matching((Job.tenant_id, tenant_id), (Job.status, status))
    return newest_first(
        session, sa.select(Job), Job, after=after, limit=limit, filters=filters, long=_LONG
    )


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a job: at once if no worker holds it, otherwise at the worker's next step.

    Raises:
        IllegalTransitionError: it is finished or already being cancelled.
    """
    return _cancel(session, lock_job(session, job_id, tenant_id=tenant_id), by="its owner")


def cancel_as_administrator(session: Session, job_id: str) -> Job:
    """Cancel any tenant's job, as :func:`cancel` does; its events name an administrator.

    Raises:
        NotFoundError: it does not exist.
        IllegalTransitionError: it is finished or already being cancelled.
    """
    return _cancel(session, lock_job(session, job_id), by="an administrator")


def _cancel(session: Session, job: Job, *, by: str) -> Job:
    if job.status in (JobStatus.QUEUED, JobStatus.PAUSED):
        move(session, job, JobStatus.CANCELLED, message=f"cancelled by {by}")
    else:
        move(session, job, JobStatus.CANCELLING, message=f"cancellation requested by {by}")
    return job


def pause(session: Session, tenant_id: str, job_id: str) -> Job:
    """Request that the worker of a training job stop at its next step, with a checkpoint.

    Raises:
        IllegalTransitionError: it is not training.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    move(session, job, JobStatus.PAUSING, message="pause requested by its owner")
    return job


def resume(session: Session, tenant_id: str, job_id: str) -> Job:
    """Put a paused job back into the queue; publish a token after the commit.

    Raises:
        IllegalTransitionError: it is not paused.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    if job.status is not JobStatus.PAUSED:
        raise IllegalTransitionError(f"job {job.id} is {job.status} and cannot be resumed")
    now = database_now(session)
    message, changes = "resumed by its owner", {"token_at": now}
    move(session, job, JobStatus.QUEUED, message=message, changes=changes, now=now)
    return job


def delete(session: Session, tenant_id: str, job_id: str) -> None:
    """Delete a finished job with its events and artifacts; unnamed blobs are removed soon.

    Raises:
        IllegalTransitionError: it is not finished.
    """
    job = lock_job(session, job_id, tenant_id=tenant_id)
    if not job.status.is_finished:
        raise IllegalTransitionError(f"job {job.id} is {job.status}: cancel it first")
    session.execute(sa.delete(JobEvent).where(JobEvent.job_id == job_id))
    artifacts = sa.delete(Artifact).where(Artifact.job_id == job_id)
    blobs = session.execute(artifacts.returning(Artifact.sha256, Artifact.bytes))
    release(session, tenant_id, {row.sha256: row.bytes for row in blobs})
    delete_listed(session, job)


def list_events(
    session: Session, job: Job, *, after: int = 0, limit: int
) -> tuple[Sequence[JobEvent], bool]:
    """Return a job's events after number ``after``, ``limit`` at most, and whether more follow."""
    query = sa.select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.number > after)
    rows = session.scalars(query.order_by(JobEvent.number).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def list_artifacts(session: Session, job: Job) -> Sequence[Artifact]:
    """Return the encodings of a job's head delta; empty unless the job has succeeded."""
    return artifacts_by_job(session, [job]).get(job.id, ())


def artifacts_by_job(session: Session, jobs: Sequence[Job]) -> Mapping[str, Sequence[Artifact]]:
    """Return the encodings of several jobs' head deltas; jobs without any are left out."""
    finished = [job.id for job in jobs if job.status is JobStatus.SUCCEEDED]
    if not finished:
        return {}
    query = sa.select(Artifact).where(Artifact.job_id.in_(finished)).order_by(Artifact.encoding)
    artifacts: dict[str, list[Artifact]] = {}
    for artifact in session.scalars(query):
        artifacts.setdefault(artifact.job_id, []).append(artifact)
    return artifacts


class JobDelta(NamedTuple):
    """A job, and its head delta if it has one."""

    job_id: str
    status: JobStatus
    model: str
    revision: str | None
    sha256: str | None  # of the delta; None if there is none


def find_deltas(
    session: Session, tenant_id: str, job_ids: Collection[str], *, encoding: str
) -> Sequence[JobDelta]:
    """Find several of a tenant's jobs and their deltas in one encoding, in one query.

    Returns:
        One entry for each existing job of the tenant, in no order.
    """
    values = {"tenant_id": tenant_id, "ids": list(job_ids), "encoding": encoding}
    return [JobDelta(*row) for row in session.execute(_JOB_DELTAS, values)]


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
    """Count a tenant's jobs by status; states without jobs are left out."""
    query = sa.select(Job.status, sa.func.count()).where(Job.tenant_id == tenant_id)
    return dict(session.execute(query.group_by(Job.status)).all())
