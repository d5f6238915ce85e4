"""Data sets: Parquet blobs with a row that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.database.connection import database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, newest_first
from store.errors import DatasetInUseError, QuotaExceededError, found
from store.states import LIVE
from store.tables import Dataset, Job
from store.tenants import lock_tenant, stored_bytes

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage import Blob

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

    Raises:
        NotFoundError: the tenant does not exist.
        QuotaExceededError: the data set would exceed the tenant's quota of bytes.
    """
    tenant = lock_tenant(session, tenant_id)
    limit = max_bytes if tenant.max_bytes is None else tenant.max_bytes
    size = sum(split.blob.bytes for split in splits.values())
    stored = stored_bytes(session, tenant_id)
    if stored + size > limit:
        raise QuotaExceededError(
            f"{stored:,} bytes are stored and the data set needs {size:,} more; the tenant's quota "
            f"max_bytes is {limit:,}"
        )
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


def keep_dataset(session: Session, tenant_id: str, dataset_id: str) -> None:
    """Prevent a tenant's data set from being deleted until the transaction ends.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
    """
    row = session.execute(_KEEP, {"id": dataset_id, "tenant_id": tenant_id}).one_or_none()
    found(row, "dataset", dataset_id)


def list_datasets(
    session: Session, tenant_id: str, *, after: str | None, limit: int
) -> Page[Dataset]:
    """Return a page of a tenant's data sets, newest first.

    Raises:
        NotFoundError: ``after`` is not one of them.
    """
    query = sa.select(Dataset).where(Dataset.tenant_id == tenant_id)
    return newest_first(session, query, Dataset, after=after, limit=limit)


def delete_dataset(session: Session, tenant_id: str, dataset_id: str) -> None:
    """Delete a data set; the sweep removes its blobs when no row names them.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
        DatasetInUseError: an unfinished job needs it.
    """
    query = sa.select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant_id == tenant_id)
    row = session.scalars(query.with_for_update()).one_or_none()
    dataset = found(row, "dataset", dataset_id)
    user = session.scalars(
        sa.select(Job.id).where(Job.dataset_id == dataset_id, Job.status.in_(LIVE)).limit(1)
    ).one_or_none()
    if user is not None:
        raise DatasetInUseError(f"job {user} still needs dataset {dataset_id}")
    session.delete(dataset)
