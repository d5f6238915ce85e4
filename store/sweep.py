"""The sweep: remove blobs that no row knows of, after a grace period.

Such blobs exist after a crash, after a restored backup, or if their rows were changed by hand. All
others are removed by :func:`store.storage.unnamed.remove_unnamed` as soon as nothing needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.storage.unnamed import release, remove_unnamed
from store.tables import Artifact, Dataset, Job, Prediction, Reservation

if TYPE_CHECKING:
    from store.storage import ArtifactStorage

Name = tuple[str, str]


def sweep(database: Database, storage: ArtifactStorage, *, grace_seconds: float) -> int:
    """Remove blobs that no row names.

    A blob is stored before a row names it, and storing it again resets its age: blobs younger than
    the grace period are kept. The others are noted as unnamed and removed as such, so one that is
    being stored again meanwhile is kept.

    Args:
        database: where the rows are.
        storage: where the blobs are.
        grace_seconds: the least age of a removed blob; longer than any upload or job takes to name
            its blobs, and longer than the artifact store's clock may be wrong.

    Returns:
        The number of files removed, including incomplete ones.

    Raises:
        ArtifactStorageError: the artifact store cannot be reached.
    """
    with database.read() as session:
        before = database_now(session) - timedelta(seconds=grace_seconds)
    old = [blob for blob in storage.list() if blob.modified_at < before]
    named = _named(database)
    unnamed = [blob for blob in old if (blob.tenant_id, blob.sha256) not in named]
    for blob in unnamed:
        modified_at = storage.modified_at(blob.tenant_id, blob.sha256)
        if modified_at is not None and modified_at < before:
            with database.write() as session:
                release(session, blob.tenant_id, {blob.sha256: blob.bytes})
    return storage.remove_unfinished(before=before) + remove_unnamed(database, storage)


def _named(database: Database) -> set[Name]:
    """Return the blobs that rows name: splits, artifacts, results, checkpoints, new ones."""
    with database.read() as session:
        artifacts = session.execute(sa.select(Artifact.tenant_id, Artifact.sha256))
        named: set[Name] = {(tenant_id, sha256) for tenant_id, sha256 in artifacts}
        for tenant_id, splits in session.execute(sa.select(Dataset.tenant_id, Dataset.splits)):
            named |= _hashes(tenant_id, splits.values())
        query = sa.select(Job.tenant_id, Job.checkpoint).where(Job.checkpoint.is_not(None))
        for tenant_id, checkpoint in session.execute(query):
            named |= _hashes(tenant_id, checkpoint["files"].values())
        results = sa.select(Prediction.tenant_id, Prediction.sha256)
        for tenant_id, sha256 in session.execute(results.where(Prediction.sha256.is_not(None))):
            named.add((tenant_id, str(sha256)))
        reserved = session.execute(sa.select(Reservation.tenant_id, Reservation.blobs))
        for tenant_id, blobs in reserved:
            named |= {(tenant_id, sha256) for sha256 in blobs or ()}
    return named


def _hashes(tenant_id: str, entries: Iterable[dict[str, str]]) -> set[Name]:
    return {(tenant_id, entry["sha256"]) for entry in entries}
