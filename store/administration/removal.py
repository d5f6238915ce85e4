"""Remove tenants with all they own.

A tenant that is deleted is gone at once for everybody: its keys are refused, its name is free, its
queued jobs and predictions are cancelled. Its rows go when nothing runs for it any more, and its
blobs with them, within seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now
from store.database.pages import delete_all_listed
from store.jobs.actions import cancel_as_administrator
from store.predictions.actions import cancel_all
from store.states import LIVE, JobStatus
from store.storage.space import release_all
from store.tables import (
    IS_LEASED,
    IS_UNFINISHED,
    ApiKey,
    Artifact,
    Dataset,
    IdempotencyRecord,
    Job,
    JobEvent,
    Prediction,
    Tenant,
)
from store.tenants import lock_tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database.connection import Database

_IS_RUNNING = sa.select(1).where(Job.tenant_id == Tenant.id, IS_LEASED).exists()
_IS_PREDICTING = sa.select(1).where(Prediction.tenant_id == Tenant.id, IS_UNFINISHED).exists()
_REMOVABLE = (
    sa.select(Tenant.id)
    .where(Tenant.deleted_at.is_not(None), ~_IS_RUNNING, ~_IS_PREDICTING)
    .limit(1)
)


def delete_tenant(session: Session, tenant_id: str) -> None:
    """Delete a tenant: revoke its keys, cancel its jobs, free its name.

    Raises:
        NotFoundError: it does not exist.
    """
    tenant = lock_tenant(session, tenant_id)
    now = database_now(session)
    tenant.suspended_at = tenant.suspended_at or now
    tenant.deleted_at = now
    tenant.name = tenant.id
    session.execute(
        sa.update(ApiKey)
        .where(ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    is_open = Job.status.in_(LIVE - {JobStatus.CANCELLING})
    # Locked, so that none of them ends by itself before it is cancelled.
    query = sa.select(Job.id).where(Job.tenant_id == tenant_id, is_open).with_for_update()
    for job_id in session.scalars(query).all():
        cancel_as_administrator(session, job_id)
    cancel_all(session, tenant_id)


def remove_deleted(database: Database) -> int:
    """Remove the rows of deleted tenants that no worker runs a job of; return their number.

    Several processes may do this at the same time: each locks the tenant that it removes.
    """
    # Every worker asks every few seconds: only a transaction that finds one may lock the database.
    with database.read() as session:
        if session.scalars(_REMOVABLE).one_or_none() is None:
            return 0
    removed = 0
    locked = _REMOVABLE.with_for_update(of=Tenant, skip_locked=True)
    while True:
        with database.write() as session:
            tenant_id = session.scalars(locked).one_or_none()
            if tenant_id is None:
                return removed
            _remove(session, tenant_id)
        removed += 1


def _remove(session: Session, tenant_id: str) -> None:
    jobs = sa.select(Job.id).where(Job.tenant_id == tenant_id)
    release_all(session, tenant_id)
    session.execute(sa.delete(JobEvent).where(JobEvent.job_id.in_(jobs)))
    for table in (Artifact, IdempotencyRecord, ApiKey):
        session.execute(sa.delete(table).where(table.tenant_id == tenant_id))
    session.execute(sa.delete(Prediction).where(Prediction.tenant_id == tenant_id))
    # Administrators may be paging through these.
    delete_all_listed(session, Job, Job.tenant_id == tenant_id, owner=Job.tenant_id)
    delete_all_listed(session, Dataset, Dataset.tenant_id == tenant_id, owner=Dataset.tenant_id)
    delete_all_listed(session, Tenant, Tenant.id == tenant_id, owner=Tenant.id)
