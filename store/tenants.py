"""Tenants and their keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now, insert_into
from store.database.identifiers import new_identifier
from store.database.pages import Page, newest_first
from store.errors import ConflictError, found
from store.tables import ApiKey, Artifact, Dataset, Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from store.settings import Settings

_SECRET_PREFIX = "hifi_"  # noqa: S105 - a prefix, not a secret
_SECRET_BYTES = 32
# Run for every request: selecting columns is faster than building rows.
_HOLDER = (
    sa.select(ApiKey.id, Tenant.id, Tenant.is_admin)
    .join(Tenant, ApiKey.tenant_id == Tenant.id)
    .where(ApiKey.sha256 == sa.bindparam("sha256"), ApiKey.revoked_at.is_(None))
)
_LOCK = sa.select(Tenant).where(Tenant.id == sa.bindparam("id")).with_for_update()


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The limits of a tenant: waiting jobs, running jobs, stored bytes."""

    max_queued: int
    max_running: int
    max_bytes: int

    @classmethod
    def of_settings(cls, settings: Settings) -> Quotas:
        """Return what the server's settings allow a tenant without quotas of its own."""
        return cls(
            max_queued=settings.tenant_max_queued,
            max_running=settings.tenant_max_running,
            max_bytes=settings.tenant_max_bytes,
        )

    def of(self, tenant: Tenant) -> Quotas:
        """Return a tenant's quotas; these are the defaults for those that it does not set."""
        return Quotas(
            **{
                name: limit if getattr(tenant, name) is None else getattr(tenant, name)
                for name, limit in vars(self).items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class OwnQuotas:
    """A tenant's own quotas; None is the server's setting."""

    max_queued: int | None = None
    max_running: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant that sends a request, and its key; the key is None if none is required."""

    key_id: str | None
    tenant_id: str
    is_admin: bool


def create_tenant(
    session: Session, name: str, *, is_admin: bool = False, own: OwnQuotas | None = None
) -> Tenant:
    """Add a tenant, which may have quotas of its own.

    Raises:
        ConflictError: another tenant has the name.
    """
    tenant = _insert_tenant(session, name, is_admin=is_admin, own=own or OwnQuotas())
    if tenant is None:
        raise ConflictError(f"a tenant named {name!r} already exists", param="name")
    return tenant


def ensure_tenant(session: Session, name: str, *, is_admin: bool) -> Tenant:
    """Find a tenant by its name, or add it; concurrent calls get the same tenant."""
    added = _insert_tenant(session, name, is_admin=is_admin, own=OwnQuotas())
    if added is not None:
        return added
    return session.scalars(sa.select(Tenant).where(Tenant.name == name)).one()


def _insert_tenant(session: Session, name: str, *, is_admin: bool, own: OwnQuotas) -> Tenant | None:
    statement = insert_into(session, Tenant).values(
        id=new_identifier("ten"),
        name=name,
        is_admin=is_admin,
        created_at=database_now(session),
        **vars(own),
    )
    return session.scalars(statement.on_conflict_do_nothing().returning(Tenant)).one_or_none()


def get_tenant(session: Session, tenant_id: str) -> Tenant:
    """Load a tenant.

    Raises:
        NotFoundError: it does not exist.
    """
    return found(session.get(Tenant, tenant_id), "tenant", tenant_id)


def list_tenants(session: Session, *, after: str | None, limit: int) -> Page[Tenant]:
    """Return a page of all tenants, newest first.

    Raises:
        NotFoundError: ``after`` is not one of them.
    """
    return newest_first(session, sa.select(Tenant), Tenant, after=after, limit=limit)


def change_quotas(session: Session, tenant_id: str, own: Mapping[str, int | None]) -> Tenant:
    """Change some of a tenant's own quotas; what exceeds a smaller one stays, nothing is added.

    Raises:
        NotFoundError: the tenant does not exist.
    """
    tenant = lock_tenant(session, tenant_id)
    for name, limit in vars(OwnQuotas(**own)).items():
        if name in own:
            setattr(tenant, name, limit)
    session.flush()
    return tenant


def create_key(session: Session, tenant_id: str, *, name: str | None = None) -> tuple[ApiKey, str]:
    """Add a key.

    Returns:
        The row, and the secret, which is not stored and cannot be shown again.

    Raises:
        NotFoundError: the tenant does not exist.
    """
    get_tenant(session, tenant_id)
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


def list_keys(session: Session, tenant_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
    """Return a page of a tenant's keys, newest first, including revoked ones.

    Raises:
        NotFoundError: the tenant does not exist, or ``after`` is not one of its keys.
    """
    get_tenant(session, tenant_id)
    query = sa.select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    return newest_first(session, query, ApiKey, after=after, limit=limit)


def revoke_key(session: Session, key_id: str) -> None:
    """Revoke a key, with immediate effect.

    Raises:
        NotFoundError: it does not exist.
    """
    key = found(session.get(ApiKey, key_id), "key", key_id)
    key.revoked_at = key.revoked_at or database_now(session)


def authenticate(session: Session, secret: str) -> Caller | None:
    """Return the holder of an unrevoked key; None if the secret is not one.

    The query looks for the secret's hash, so that its duration does not reveal how much of a guess
    was right.
    """
    row = session.execute(_HOLDER, {"sha256": _hash(secret)}).one_or_none()
    return None if row is None else Caller(*row)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def lock_tenant(session: Session, tenant_id: str) -> Tenant:
    """Load a tenant and lock its quotas until the transaction ends.

    Raises:
        NotFoundError: it does not exist.
    """
    return found(session.scalars(_LOCK, {"id": tenant_id}).one_or_none(), "tenant", tenant_id)


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Return the bytes of a tenant's data sets and artifacts."""
    total = 0
    for table in (Dataset, Artifact):
        query = sa.select(sa.func.coalesce(sa.func.sum(table.bytes), 0))
        total += int(session.scalars(query.where(table.tenant_id == tenant_id)).one())
    return total
