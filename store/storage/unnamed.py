"""Blobs without a row: noted when they lose it, counted until they are removed from the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import structlog

from store.database.connection import CLOCK, Database, database_now, insert_into
from store.errors import ArtifactStorageError
from store.states import LIVE
from store.tables import Artifact, Dataset, Job, Prediction, Reservation, UnnamedBlob
from store.tenants import lock_even_deleted

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage.blobs import ArtifactStorage

_REMOVAL = timedelta(minutes=2)  # longer than any call of the artifact store takes
_log = structlog.get_logger(__name__)


def sizes(entries: Mapping[str, Any]) -> dict[str, int]:
    """Return bytes by hash of ``{name: {"sha256", "bytes"}}``, as splits and checkpoints list."""
    return {entry["sha256"]: entry["bytes"] for entry in entries.values()}


def release(
    session: Session, tenant_id: str, blobs: Mapping[str, int], *, named: Collection[str] = ()
) -> None:
    """Note that blobs have lost a row or a reservation; those without another are removed soon.

    Args:
        session: the transaction in which they lose it.
        tenant_id: the owner.
        blobs: bytes by hash.
        named: hashes of those that rows name now.
    """
    rows = [
        {"tenant_id": tenant_id, "sha256": sha256, "bytes": blobs[sha256]}
        for sha256 in sorted(blobs.keys() - set(named))
    ]
    if rows:
        insert = insert_into(session, UnnamedBlob).values(rows)
        # An update locks the row: a process that has found the blob to be needed forgets it only
        # before this transaction, and not after it.
        session.execute(
            insert.on_conflict_do_update(
                index_elements=[UnnamedBlob.tenant_id, UnnamedBlob.sha256],
                set_={"bytes": insert.excluded.bytes},
            )
        )


def remove_unnamed(
    database: Database, storage: ArtifactStorage, *, tenant_id: str | None = None
) -> int:
    """Remove the blobs that no row and no reservation names any more.

    Args:
        database: where the rows are.
        storage: where the blobs are.
        tenant_id: only this tenant's; None for those of all.

    Returns:
        The number of blobs removed; one that cannot be removed now is logged and tried again later.
    """
    removed = 0
    while True:
        # Every worker asks every few seconds: only one that finds something may lock the database.
        with database.read() as session:
            if session.scalars(_unclaimed(tenant_id).limit(1)).first() is None:
                return removed
        with database.write() as session:
            blob = _claim_unnamed(session, tenant_id)
        if blob is None:
            return removed
        try:
            storage.delete(blob.tenant_id, blob.sha256)
        except ArtifactStorageError as error:
            _log.warning(
                "blob not removed", tenant=blob.tenant_id, sha256=blob.sha256, reason=str(error)
            )
            continue
        with database.write() as session:
            session.delete(blob)
        removed += 1


def _claim_unnamed(session: Session, tenant_id: str | None) -> UnnamedBlob | None:
    """Return a blob that this process is to remove; forget those that something needs after all."""
    query = _unclaimed(tenant_id)
    while (blob := session.scalars(query.limit(1)).first()) is not None:
        # Nobody can enter the blob into a reservation until this transaction ends.
        lock_even_deleted(session, blob.tenant_id)
        this = query.where(
            UnnamedBlob.tenant_id == blob.tenant_id, UnnamedBlob.sha256 == blob.sha256
        ).with_for_update(skip_locked=True)
        locked = session.scalars(this, execution_options={"populate_existing": True}).first()
        if locked is None:  # another process has it: leave the rest to it
            return None
        if not _is_needed(session, locked.tenant_id, locked.sha256):
            locked.removed_until = database_now(session) + _REMOVAL
            return locked
        session.delete(locked)
        session.flush()
    return None


def _unclaimed(tenant_id: str | None) -> sa.Select[UnnamedBlob]:
    """Select the unnamed blobs that no process removes now: of a tenant, or of all."""
    is_free = sa.or_(UnnamedBlob.removed_until.is_(None), UnnamedBlob.removed_until < CLOCK)
    query = sa.select(UnnamedBlob).where(is_free)
    return query if tenant_id is None else query.where(UnnamedBlob.tenant_id == tenant_id)


def _is_needed(session: Session, tenant_id: str, sha256: str) -> bool:
    """Return whether a reservation or a row of the locked tenant names a blob.

    Reservations come first: what ends one in the meantime has named its blobs then.
    """
    held = sa.select(Reservation.blobs).where(Reservation.tenant_id == tenant_id)
    if any(sha256 in (blobs or {}) for blobs in session.scalars(held)):
        return True
    splits = sa.select(Dataset.splits).where(Dataset.tenant_id == tenant_id)
    if any(sha256 in sizes(each) for each in session.scalars(splits)):
        return True
    checkpoints = sa.select(Job.checkpoint).where(
        Job.tenant_id == tenant_id, Job.status.in_(LIVE), Job.checkpoint.is_not(None)
    )
    if any(sha256 in sizes(each["files"]) for each in session.scalars(checkpoints)):
        return True
    artifact = sa.select(Artifact.job_id).where(
        Artifact.tenant_id == tenant_id, Artifact.sha256 == sha256
    )
    result = sa.select(Prediction.id).where(
        Prediction.tenant_id == tenant_id, Prediction.sha256 == sha256
    )
    return any(session.scalars(query.limit(1)).first() for query in (artifact, result))
