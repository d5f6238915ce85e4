"""Data sets: Parquet blobs with a row that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.database.connection import database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, delete_listed, matching, newest_first
from store.errors import DatasetAmbiguousError, DatasetInUseError, found
from store.states import LIVE, UNFINISHED_PREDICTIONS
from store.storage.space import check_room, end_held, used_bytes
from store.storage.unnamed import release, sizes
from store.tables import Dataset, Job, Prediction
from store.tenants import lock_tenant, quota

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage import Blob

_SHOWN = 5  # ids of data sets of the same name
_KEEP = (
    sa.select(Dataset.id)
    .where(Dataset.id == sa.bindparam("id"), Dataset.tenant_id == sa.bindparam("tenant_id"))
    .with_for_update(read=True)
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a data set: its stored blob and its number of rows."""

    blob: Blob
    rows: int


def add_dataset(
    session: Session,
    tenant_id: str,
    *,
    name: str | None,
    splits: Mapping[str, Split],
    columns: Mapping[str, str],
    profile: Mapping[str, Any],
    max_bytes: int,
    reservation_id: str | None = None,
) -> Dataset:
    """Add a data set of stored blobs to a tenant.

    Args:
        session: a write transaction.
        tenant_id: the owner.
        name: for people.
        splits: by name: ``train``, ``validation``, ``test``.
        columns: name to type.
        profile: describes the columns' values, as plain JSON.
        max_bytes: the quota of a tenant without its own.
        reservation_id: under which the blobs were stored; it ends.

    Raises:
        NotFoundError: the tenant does not exist.
        SpaceExceededError: the data set would exceed the tenant's quota of bytes.
        ArtifactStorageError: the reservation has expired.
    """
    tenant = lock_tenant(session, tenant_id)
    limit = quota(tenant.max_bytes, default=max_bytes)
    size = sum(split.blob.bytes for split in splits.values())
    if reservation_id is not None:
        end_held(session, reservation_id, named=[split.blob.sha256 for split in splits.values()])
    check_room(used_bytes(session, tenant_id), size, limit=limit)
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split}:{splits[split].blob.sha256}\n".encode())
    dataset = Dataset(
        id=new_identifier("ds"),
        tenant_id=tenant_id,
        name=name,
        splits={
            key: {"rows": split.rows, "bytes": split.blob.bytes, "sha256": split.blob.sha256}
            for key, split in splits.items()
        },
        columns=dict(columns),
        profile=dict(profile),
        bytes=size,
        sha256=digest.hexdigest(),
        created_at=database_now(session),
    )
    session.add(dataset)
    session.flush()
    return dataset


def get_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Load a tenant's data set.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
    """
    query = sa.select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
    return found(session.scalars(query).one_or_none(), "dataset", dataset_id)


def find_dataset(session: Session, tenant_id: str, reference: str) -> Dataset:
    """Load the tenant's data set of that id, or else the only one of that name.

    Raises:
        NotFoundError: none of the tenant's data sets has this id or name.
        DatasetAmbiguousError: several have the name.
    """
    mine = sa.select(Dataset).where(Dataset.tenant_id == tenant_id)
    of_id = session.scalars(mine.where(Dataset.id == reference)).one_or_none()
    if of_id is not None:
        return of_id
    named = session.scalars(
        mine.where(Dataset.name == reference).order_by(Dataset.created_at.desc()).limit(_SHOWN + 1)
    ).all()
    if len(named) > 1:
        ids = ", ".join(dataset.id for dataset in named[:_SHOWN])
        more = ", …" * (len(named) > _SHOWN)
        raise DatasetAmbiguousError(
            f"several data sets are named {reference!r}: use an id ({ids}{more})"
        )
    return found(named[0] if named else None, "dataset", reference)


def keep_dataset(session: Session, tenant_id: str, dataset_id: str) -> None:
    """Prevent a tenant's data set from being deleted until the transaction ends.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
    """
    row = session.execute(_KEEP, {"id": dataset_id, "tenant_id": tenant_id}).one_or_none()
    found(row, "dataset", dataset_id)


def list_datasets(
    session: Session,
    tenant_id: str,
    *,
    name: str | None = None,
    after: str | None,
    limit: int,
) -> Page[Dataset]:
    """Return a page of a tenant's data sets, newest first; ``name`` selects those of that name.

    Raises:
        NotFoundError: ``after`` was never one of them.
    """
    query = sa.select(Dataset).where(Dataset.tenant_id == tenant_id)
    filters = matching((Dataset.name, name))
    return newest_first(
        session,
        query,
        Dataset,
        after=after,
        limit=limit,
        tenant_id=tenant_id,
        filters=filters,
        long=(Dataset.columns, Dataset.profile),
    )


def delete_dataset(session: Session, tenant_id: str, dataset_id: str) -> None:
    """Delete a data set; its blobs are removed soon if no other row names them.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
        DatasetInUseError: an unfinished job or batch prediction needs it.
    """
    query = sa.select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
    row = session.scalars(query.with_for_update()).one_or_none()
    dataset = found(row, "dataset", dataset_id)
    user = session.scalars(
        sa.select(Job.id).where(Job.dataset_id == dataset_id, Job.status.in_(LIVE)).limit(1)
    ).one_or_none()
    if user is not None:
        raise DatasetInUseError(f"job {user} still needs dataset {dataset_id}")
    reader = session.scalars(
        sa.select(Prediction.id)
        .where(Prediction.dataset_id == dataset_id, Prediction.status.in_(UNFINISHED_PREDICTIONS))
        .limit(1)
    ).one_or_none()
    if reader is not None:
        raise DatasetInUseError(f"prediction {reader} still reads dataset {dataset_id}")
    delete_listed(session, dataset)
    release(session, tenant_id, sizes(dataset.splits))
