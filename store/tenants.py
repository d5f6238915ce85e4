"""Tenants and their keys."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database import database_now
from store.errors import ConflictError, NotFoundError
from store.identifiers import new_identifier
from store.tables import ApiKey, Artifact, Dataset, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_SECRET_PREFIX = "hifi_"  # noqa: S105 - what every secret begins with
_SECRET_BYTES = 32


def create_tenant(session: Session, name: str, *, is_admin: bool = False) -> Tenant:
    """Add a tenant.

    Raises:
        ConflictError: another has the name.
    """
    if session.scalars(sa.select(Tenant).where(Tenant.name == name)).one_or_none() is not None:
        raise ConflictError(f"there is a tenant {name!r} already", param="name")
    tenant = Tenant(
        id=new_identifier("ten"), name=name, is_admin=is_admin, created_at=database_now(session)
    )
    session.add(tenant)
    session.flush()
    return tenant


def create_key(session: Session, tenant_id: str, *, name: str | None = None) -> tuple[ApiKey, str]:
    """Add a key.

    Returns:
        The row, and the secret: it is kept nowhere and cannot be shown again.

    Raises:
        NotFoundError: there is no such tenant.
    """
    if session.get(Tenant, tenant_id) is None:
        raise NotFoundError("tenant", tenant_id)
    secret = _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(
        id=new_identifier("key"),
        tenant_id=tenant_id,
        name=name,
        sha256=_hash(secret),
        created_at=database_now(session),
    )
    session.add(key)
    session.flush()
    return key, secret


def revoke_key(session: Session, key_id: str) -> None:
    """Make a key worthless at once.

    Raises:
        NotFoundError: there is none.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFoundError("key", key_id)
    key.revoked_at = key.revoked_at or database_now(session)


def authenticate(session: Session, secret: str) -> Tenant | None:
    """Find the tenant whose unrevoked key this is.

    The table is asked for the secret's hash, so that the time it takes tells nothing about how
    much of a guess was right.
    """
    query = (
        sa.select(Tenant)
        .join(ApiKey, ApiKey.tenant_id == Tenant.id)
        .where(ApiKey.sha256 == _hash(secret), ApiKey.revoked_at.is_(None))
    )
    return session.scalars(query).one_or_none()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def lock_tenant(session: Session, tenant_id: str) -> Tenant:
    """Load a tenant and keep others from counting against its quotas until the transaction ends.

    Raises:
        NotFoundError: there is none.
    """
    query = sa.select(Tenant).where(Tenant.id == tenant_id).with_for_update()
    tenant = session.scalars(query).one_or_none()
    if tenant is None:
        raise NotFoundError("tenant", tenant_id)
    return tenant


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Add up what a tenant keeps: data sets and artifacts."""
    total = 0
    for table in (Dataset, Artifact):
        query = sa.select(sa.func.coalesce(sa.func.sum(table.bytes), 0))
        total += int(session.scalars(query.where(table.tenant_id == tenant_id)).one())
    return total
