"""Tenants with queued jobs, and a worker to claim them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.datasets import Split, add_dataset
from store.jobs.actions import NewJob, submit
from store.jobs.claims import Claimant, ClaimedJob, claim_next
from store.jobs.leases import Lease
from store.jobs.workers import BackboneDescription
from store.tenants import create_tenant
from tests.waiting import eventually

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.storage import Blob

NEW = NewJob(
    spec={},
    model="minilm",
    revision=None,
    needs_hub=False,
    dataset_id=None,
    name=None,
    meta={},
)
MINILM = BackboneDescription(
    id="minilm",
    architecture="BertModel",
    num_layers=6,
    num_heads=12,
    num_key_value_heads=12,
    head_dim=32,
    hidden_size=384,
    parameters=22_713_216,
    fingerprint="sha256:" + "0" * 64,
    max_positions=512,
    weights_per_head=36_960,
    task_heads={"classification": {"base": 0, "per_label": 385}},
)
WORKER = Claimant(worker_id="worker-1", backbones=frozenset({"minilm"}))


def add_tenant(database: Database, name: str, **quotas: int) -> str:
    """Add a tenant with these quotas; return its id."""
    with database.write() as session:
        tenant = create_tenant(session, name)
        for quota, value in quotas.items():
            setattr(tenant, quota, value)
        return tenant.id


def add_split(database: Database, tenant_id: str, blob: Blob) -> None:
    """Add a data set with one blob as its only split."""
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


def add_job(
    database: Database,
    tenant_id: str,
    *,
    artifact_bytes: int = 0,
    max_bytes: int = 1 << 40,
    **changes: Any,
) -> str:
    """Queue a job; return its id."""
    new = replace(NEW, **{"spec": {"model": "minilm", "k": 3}, **changes})
    with database.write() as session:
        return submit(
            session,
            tenant_id,
            new,
            max_queued=10_000,
            max_bytes=max_bytes,
            artifact_bytes=artifact_bytes,
        ).id


def claim(
    database: Database, claimant: Claimant = WORKER, *, seconds: float = 60, max_running: int = 100
) -> ClaimedJob | None:
    """Claim the next job."""
    return claim_next(database, claimant, lease_seconds=seconds, max_running=max_running)


def claimed(database: Database, **arguments: Any) -> tuple[ClaimedJob, Lease]:
    """Claim the next job; assert that there is one."""
    job = claim(database, **arguments)
    assert job is not None
    return job, Lease(database, job.id, fence=job.fence, seconds=arguments.get("seconds", 60))


def wait_for_a_waiting_transaction(database: Database) -> None:
    """Wait until another transaction waits for a lock that this thread holds.

    SQLite does not tell; there, any other write transaction waits from its begin.
    """
    if database.engine.dialect.name == "sqlite":
        return
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def count() -> int:
        with database.read() as session:
            return session.scalar(waiting) or 0

    eventually(count, message="another transaction waits")
