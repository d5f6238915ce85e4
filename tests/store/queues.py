"""Tenants with queued jobs, and a worker to claim them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from store.claims import Claimant, ClaimedJob, claim_next
from store.datasets import Split, add_dataset, keep_datasets
from store.jobs import NewJob, QueuedJob, draft, enqueue
from store.leases import Lease
from store.tenants import authenticate_all, create_tenant, lock_tenants

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database import Database
    from store.storage import Blob
    from store.tenants import KeyHolder

NEW = NewJob(
    spec={},
    model="minilm",
    revision=None,
    needs_hub=False,
    dataset_id=None,
    name=None,
    metadata={},
)
WORKER = Claimant(worker_id="worker-1", backbones=frozenset({"minilm"}))


def add_tenant(database: Database, name: str, **quotas: int) -> str:
    """Add a tenant with these quotas; give its id."""
    with database.write() as session:
        tenant = create_tenant(session, name)
        for quota, value in quotas.items():
            setattr(tenant, quota, value)
        return tenant.id


def authenticate(session: Session, secret: str) -> KeyHolder | None:
    """Find the tenant whose unrevoked key this is."""
    return authenticate_all(session, [secret])[0]


def add_split(database: Database, tenant_id: str, blob: Blob) -> None:
    """Make a blob the one split of a data set."""
    with database.write() as session:
        add_dataset(
            session,
            tenant_id,
            name=None,
            splits={"train": Split(blob=blob, rows=1)},
            columns={},
            profile={},
            max_bytes=999,
        )


def submit(session: Session, tenant_id: str, new: NewJob, *, max_queued: int) -> QueuedJob:
    """Queue a job as the gateway does, or raise why it cannot be."""
    lock_tenants(session, [tenant_id])
    kept = keep_datasets(session, [new.dataset_id] if new.dataset_id else [])
    (job,) = draft(session, [(tenant_id, new)], kept=kept, max_queued=max_queued)
    if isinstance(job, Exception):
        raise job
    enqueue(session, [job])
    return job


def add_job(database: Database, tenant_id: str, **changes: Any) -> str:
    """Queue a job; give its id."""
    new = replace(NEW, **{"spec": {"model": "minilm", "k": 3}, **changes})
    with database.write() as session:
        return submit(session, tenant_id, new, max_queued=10_000).id


def claim(
    database: Database, claimant: Claimant = WORKER, *, seconds: float = 60, max_running: int = 100
) -> ClaimedJob | None:
    """Claim the next job."""
    return claim_next(database, claimant, lease_seconds=seconds, max_running=max_running)


def claimed(database: Database, **arguments: Any) -> tuple[ClaimedJob, Lease]:
    """Claim a job that must be there."""
    job = claim(database, **arguments)
    assert job is not None
    return job, Lease(database, job.id, fence=job.fence, seconds=arguments.get("seconds", 60))
