"""The space of tenants in the artifact store: reserved, used, and freed again.

A blob is stored under a reservation, and a row may name it only in the transaction that ends that
reservation. A blob that loses its row becomes an unnamed one (:mod:`store.storage.unnamed`), which
counts against the quota until it is removed. So every byte in the store counts at any time,
whichever process dies.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import CLOCK, Database, database_now
from store.database.identifiers import new_identifier
from store.errors import ArtifactStorageError, SpaceExceededError, found
from store.storage.blobs import ArtifactStorage, Blob
from store.storage.unnamed import release, sizes
from store.tables import Artifact, Dataset, Job, Prediction, Reservation, UnnamedBlob
from store.tenants import lock_even_deleted, quota

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

EXPIRY = timedelta(minutes=5)  # of an upload's reservation, unless its gateway renews it
_WAIT_SECONDS = 10.0  # for the removal of a blob that is to be stored again
_PAUSE_SECONDS = 0.1
_GIVEN_UP = "the space reserved for this upload or job is given up; retry"
_BEING_REMOVED = (
    "the same content was deleted just now, and its removal is not finished; retry in some seconds"
)
_EXPIRED = Reservation.expires_at < CLOCK


class RemovalUnderWayError(ArtifactStorageError):
    """A blob is being removed: it can be stored again when that is done."""


def used_bytes(session: Session, tenant_id: str) -> int:
    """Return the bytes that count against a tenant's quota.

    These are its data sets, artifacts and results of predictions, what is reserved for uploads,
    unfinished jobs (among it their checkpoints) and unfinished predictions (their parts), and blobs
    that wait to be removed.
    """
    return int(session.scalars(_USED, {"tenant_id": tenant_id}).one())


def _sum_of(
    table: type[Dataset | Artifact | Prediction | Reservation | UnnamedBlob],
) -> sa.ColumnElement[int]:
    total = sa.select(sa.func.coalesce(sa.func.sum(table.bytes), 0))
    return total.where(table.tenant_id == sa.bindparam("tenant_id")).scalar_subquery()


_USED = sa.select(
    _sum_of(Dataset)
    + _sum_of(Artifact)
    + _sum_of(Prediction)
    + _sum_of(Reservation)
    + _sum_of(UnnamedBlob)
)


def reserve(session: Session, tenant_id: str, *, size: int | None, max_bytes: int) -> str:
    """Reserve space for an upload; return the reservation's id.

    Args:
        session: a write transaction.
        tenant_id: the owner.
        size: of the upload, in bytes; None if it is unknown: then the reservation has one byte.
        max_bytes: the quota of a tenant without its own.

    Raises:
        SpaceExceededError: the tenant's quota has no room for it.
    """
    held = 1 if size is None else size
    return _reserve(session, tenant_id, size=held, needed=size, max_bytes=max_bytes)


def reserve_for_repeat(session: Session, tenant_id: str, *, size: int, max_bytes: int) -> str:
    """Reserve space for an upload that has probably been stored before.

    It is received to be compared, so it may exceed the quota, but only one at a time can.

    Raises:
        SpaceExceededError: the tenant's quota is exceeded already.
    """
    return _reserve(session, tenant_id, size=size, needed=0, max_bytes=max_bytes)


def _reserve(
    session: Session, tenant_id: str, *, size: int, needed: int | None, max_bytes: int
) -> str:
    limit = _lock_quota(session, tenant_id, max_bytes=max_bytes)
    now = database_now(session)
    _end(session, _EXPIRED, Reservation.tenant_id == tenant_id)
    used = used_bytes(session, tenant_id)
    check_room(used, needed, limit=limit)
    identifier = new_identifier("res")
    values = {"id": identifier, "tenant_id": tenant_id, "bytes": size, "expires_at": now + EXPIRY}
    session.execute(sa.insert(Reservation).values(values))
    return identifier


def reserve_for_job(
    session: Session, job_id: str, *, tenant_id: str, size: int, limit: int
) -> None:
    """Reserve space for what a job or a batch prediction stores, until it is finished.

    Args:
        session: a write transaction that has locked the tenant.
        job_id: of the job or prediction, which becomes the reservation's id.
        tenant_id: the owner.
        size: the estimated bytes of its artifacts; 0 if unknown.
        limit: the tenant's quota of bytes.

    Raises:
        SpaceExceededError: the tenant's quota has no room for it.
    """
    check_room(used_bytes(session, tenant_id), size, limit=limit)
    values = {"id": job_id, "tenant_id": tenant_id, "bytes": size}
    session.execute(sa.insert(Reservation).values(values))


def check_room(used: int, needed: int | None, *, limit: int, is_minimum: bool = False) -> None:
    """Raise if a quota has no room.

    Args:
        used: the bytes that count against it.
        needed: further bytes; None if their number is unknown, but not 0.
        limit: the quota.
        is_minimum: whether more bytes than ``needed`` may follow.

    Raises:
        SpaceExceededError: it has not.
    """
    if used + (1 if needed is None else needed) > limit:
        number = f"{'at least ' if is_minimum else ''}{needed:,} " if needed else ""
        raise SpaceExceededError(
            f"{used:,} bytes are stored or reserved and {number}more are needed; the tenant's "
            f"quota max_bytes is {limit:,}: delete data sets or jobs"
        )


def extend(
    session: Session,
    reservation_id: str,
    *,
    tenant_id: str,
    size: int,
    spare: int,
    max_bytes: int,
) -> int:
    """Extend an upload's reservation; return how many bytes it has then.

    Args:
        session: a write transaction.
        reservation_id: of the upload.
        tenant_id: the owner.
        size: the least number of bytes that it must have.
        spare: more bytes to reserve, as far as there is room.
        max_bytes: the quota of a tenant without its own.

    Raises:
        SpaceExceededError: the tenant's quota has no room for ``size`` bytes.
        ArtifactStorageError: the reservation has expired.
    """
    limit = _lock_quota(session, tenant_id, max_bytes=max_bytes)
    held = _find(session, reservation_id)
    others = used_bytes(session, tenant_id) - held.bytes
    check_room(others, size, limit=limit, is_minimum=True)
    held.bytes = min(size + spare, limit - others)
    return held.bytes


def renew(database: Database, reservation_ids: Collection[str]) -> None:
    """Put off the expiry of uploads' reservations."""
    with database.write() as session:
        expires_at = database_now(session) + EXPIRY
        held = sa.update(Reservation).where(Reservation.id.in_(reservation_ids))
        session.execute(held.values(expires_at=expires_at))


def store_files(
    files: Mapping[str, Path],
    *,
    database: Database,
    storage: ArtifactStorage,
    tenant_id: str,
    reservation_id: str,
    max_bytes: int | None = None,
) -> dict[str, Blob]:
    """Store files as blobs under a reservation.

    Args:
        files: by a name of the caller's.
        database: where the reservation is.
        storage: where the blobs are put.
        tenant_id: the owner.
        reservation_id: what the files count against.
        max_bytes: the quota of a tenant without its own; None for a job, which was checked before
            it was queued: its checkpoints may not fail it.

    Returns:
        The blobs by the same names. A row may name them in the transaction that ends the
        reservation.

    Raises:
        SpaceExceededError: the tenant's quota has no room for them.
        ArtifactStorageError: they cannot be stored, or the reservation has ended; what was stored
            is removed soon.
    """
    blobs = {name: Blob.of(file) for name, file in files.items()}
    give_up_at = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            with database.write() as session:
                limit = _lock_quota(session, tenant_id, max_bytes=max_bytes or 0)
                held = _find(session, reservation_id)
                unlimited = max_bytes is None
                _promise(session, held, blobs.values(), limit=None if unlimited else limit)
            break
        except RemovalUnderWayError:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(_PAUSE_SECONDS)
    for name, file in files.items():
        storage.put(tenant_id, file, blob=blobs[name])
    with database.read() as session:
        if _holds(session, reservation_id, blobs.values()):
            return blobs
    with database.write() as session:
        release(session, tenant_id, {blob.sha256: blob.bytes for blob in blobs.values()})
    raise ArtifactStorageError(_GIVEN_UP)


def _holds(session: Session, reservation_id: str, blobs: Collection[Blob]) -> bool:
    """Return whether a reservation still has blobs that were entered into it."""
    query = sa.select(Reservation.blobs).where(Reservation.id == reservation_id)
    held = session.scalars(query).one_or_none() or {}
    return {blob.sha256 for blob in blobs} <= held.keys()


def _promise(
    session: Session, held: Reservation, blobs: Collection[Blob], *, limit: int | None
) -> None:
    """Enter blobs into a reservation of a locked tenant before they are stored.

    Args:
        session: a write transaction.
        held: the reservation.
        blobs: to be stored.
        limit: the tenant's quota of bytes; None does not check it.

    Raises:
        SpaceExceededError: the quota has no room for them.
        RemovalUnderWayError: one of them is being removed.
    """
    entries = {**(held.blobs or {}), **{blob.sha256: blob.bytes for blob in blobs}}
    size = sum(entries.values())
    now = database_now(session)
    mine = (UnnamedBlob.tenant_id == held.tenant_id, UnnamedBlob.sha256.in_(entries))
    under_way = session.scalars(
        sa.select(UnnamedBlob.sha256).where(*mine, UnnamedBlob.removed_until > now).limit(1)
    ).first()
    if under_way is not None:
        raise RemovalUnderWayError(f"blob {under_way} is being removed", detail=_BEING_REMOVED)
    session.execute(sa.delete(UnnamedBlob).where(*mine))
    if limit is not None:
        check_room(used_bytes(session, held.tenant_id) - held.bytes, size, limit=limit)
        held.bytes = size
    else:
        held.bytes = max(held.bytes, size + _checkpoint_bytes(session, held.id))
    held.blobs = entries


def _checkpoint_bytes(session: Session, job_id: str) -> int:
    """Return the size of a job's newest checkpoint, which stays until the next one is stored."""
    checkpoint = session.scalars(sa.select(Job.checkpoint).where(Job.id == job_id)).one_or_none()
    return sum(sizes(checkpoint["files"]).values()) if checkpoint else 0


def end(session: Session, reservation_id: str, *, named: Collection[str] = ()) -> None:
    """End a reservation; its blobs are removed soon unless a row names them.

    Args:
        session: the transaction in which rows name its blobs.
        reservation_id: ended before, it is ignored.
        named: hashes that rows name now.
    """
    _end(session, Reservation.id == reservation_id, named=named)


def end_held(session: Session, reservation_id: str, *, named: Collection[str]) -> None:
    """End an upload's reservation like :func:`end`, for rows that need its blobs.

    Raises:
        ArtifactStorageError: it has expired, and its blobs may be removed by now.
    """
    _find(session, reservation_id)
    end(session, reservation_id, named=named)


def clear(session: Session, reservation_id: str, *, named: Collection[str]) -> None:
    """Let go of a reservation's blobs like :func:`end`, and keep the reserved space."""
    held = session.get(Reservation, reservation_id, with_for_update=True)
    if held is not None and held.blobs:
        release(session, held.tenant_id, held.blobs, named=named)
        held.blobs = None


def end_expired(database: Database) -> None:
    """End the reservations of uploads whose gateway has died."""
    # Every worker asks every few seconds: only one that finds something may lock the database.
    with database.read() as session:
        if session.scalars(sa.select(Reservation.id).where(_EXPIRED).limit(1)).first() is None:
            return
    with database.write() as session:
        _end(session, _EXPIRED)


def _end(session: Session, *which: sa.ColumnElement[bool], named: Collection[str] = ()) -> None:
    ended = sa.delete(Reservation).where(*which)
    rows = session.execute(ended.returning(Reservation.tenant_id, Reservation.blobs)).all()
    for tenant_id, blobs in rows:
        release(session, tenant_id, blobs or {}, named=named)


def release_all(session: Session, tenant_id: str) -> None:
    """Note that all of a tenant's blobs are about to lose their rows; end its reservations."""
    blobs: dict[str, int] = {}
    for splits in session.scalars(sa.select(Dataset.splits).where(Dataset.tenant_id == tenant_id)):
        blobs |= sizes(splits)
    artifacts = sa.select(Artifact.sha256, Artifact.bytes).where(Artifact.tenant_id == tenant_id)
    blobs |= dict(session.execute(artifacts).all())
    results = sa.select(Prediction.sha256, Prediction.bytes).where(
        Prediction.tenant_id == tenant_id
    )
    for sha256, size in session.execute(results):
        if sha256 is not None and size is not None:
            blobs[sha256] = size
    checkpoints = sa.select(Job.checkpoint).where(
        Job.tenant_id == tenant_id, Job.checkpoint.is_not(None)
    )
    for checkpoint in session.scalars(checkpoints):
        blobs |= sizes(checkpoint["files"])
    release(session, tenant_id, blobs)
    _end(session, Reservation.tenant_id == tenant_id)


def _lock_quota(session: Session, tenant_id: str, *, max_bytes: int) -> int:
    """Lock a tenant; return its quota of bytes."""
    tenant = found(lock_even_deleted(session, tenant_id), "tenant", tenant_id)
    return quota(tenant.max_bytes, default=max_bytes)


def _find(session: Session, reservation_id: str) -> Reservation:
    held = session.get(Reservation, reservation_id, with_for_update=True)
    if held is None:
        raise ArtifactStorageError(_GIVEN_UP)
    return held
