"""Tenants with finished jobs, written into the tables of a deployment before it is started."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.backbones.models import resolve_model
from hifi.backbones.packaged import PACKAGED_MODEL
from store.database.connection import Database
from store.jobs.claims import Claimant, claim_next
from store.jobs.leases import Lease
from store.orders import DeltaOrder
from store.settings import Settings
from store.states import JobStatus
from store.storage import ArtifactStorage
from tests.service.gateways import Member, add_member
from tests.service.work import RESULT
from tests.store.queues import add_job
from tests.worker.inference.tuned import tune

if TYPE_CHECKING:
    from tests.integration.deployment import Deployment

_WORKER = Claimant(worker_id="worker-0", backbones=frozenset({PACKAGED_MODEL}))


@dataclass(frozen=True)
class Tenant:
    """A tenant with finished jobs.

    Attributes:
        member: has the key.
        orders: for the head delta of each job.
    """

    member: Member
    orders: tuple[DeltaOrder, ...]

    @property
    def jobs(self) -> list[str]:
        """The ids of its jobs."""
        return [order.job for order in self.orders]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request by this tenant."""
        return self.member.headers


def settings_of(deployment: Deployment) -> Settings:
    """Return the settings of a deployment's processes."""
    names = {
        key.removeprefix("HIFI_").lower(): value
        for key, value in deployment.environment.items()
        if key.startswith("HIFI_")
    }
    known: dict[str, Any] = {k: v for k, v in names.items() if k in Settings.model_fields}
    return Settings(**known)


def add_finished(
    deployment: Deployment, *tenants: str, jobs: int = 1, is_admin: bool = False
) -> dict[str, Tenant]:
    """Add tenants, each with a key and finished jobs on the packaged backbone.

    The head deltas are noise, each another. The tables must exist, and no worker may be running: it
    would claim the jobs.
    """
    settings = settings_of(deployment)
    storage = ArtifactStorage(settings.artifacts_url)
    added = {}
    with closing(Database(settings.database_url, pool_size=1)) as database:
        for place, name in enumerate(tenants):
            member = add_member(database, name, is_admin=is_admin)
            seeds = range(place * jobs, place * jobs + jobs)
            orders = (_finish(database, storage, member, seed=seed) for seed in seeds)
            added[name] = Tenant(member, tuple(orders))
    return added


def _finish(
    database: Database, storage: ArtifactStorage, member: Member, *, seed: int
) -> DeltaOrder:
    job_id = add_job(database, member.tenant_id, model=PACKAGED_MODEL)
    claimed = claim_next(database, _WORKER, lease_seconds=60, max_running=100)
    assert claimed is not None
    lease = Lease(database, job_id, fence=claimed.fence, seconds=60)
    lease.advance(JobStatus.SELECTING, message="scoring the heads")
    lease.advance(JobStatus.TRAINING, message="training")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "delta"
        tune(resolve_model(PACKAGED_MODEL).path, seed=seed, max_length=128).delta.save(file)
        blob = storage.put(member.tenant_id, file)
    lease.succeed(result=RESULT, artifacts={"float32": blob})
    return DeltaOrder(tenant=member.tenant_id, job=job_id, model=PACKAGED_MODEL, sha256=blob.sha256)
