"""Tenants and their keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from store.database import database_now, is_sqlite
from store.errors import ConflictError, NotFoundError
from store.identifiers import new_identifier
from store.pages import Page, newest_first
from store.tables import ApiKey, Artifact, Dataset, Tenant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

_SECRET_PREFIX = "hifi_"  # noqa: S105 - the prefix of every secret
_SECRET_BYTES = 32
# Queried for every request: plain columns are faster than mapped rows.
_HOLDERS = (
    sa.select(ApiKey.sha256, ApiKey.id, Tenant.id, Tenant.name, Tenant.is_admin)
    .join(Tenant, ApiKey.tenant_id == Tenant.id)
    .where(ApiKey.sha256.in_(sa.bindparam("hashes", expanding=True)), ApiKey.revoked_at.is_(None))
)
_LOCK = (
    sa.select(Tenant.id)
    .where(Tenant.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(Tenant.id)
    .with_for_update()
)


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The limits of a tenant: waiting jobs, running jobs, stored bytes."""

    max_queued: int
    max_running: int
    max_bytes: int

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
class KeyHolder:
    """The tenant to whom a key belongs."""

    key_id: str
    tenant_id: str
    tenant_name: str
    is_admin: bool


def create_tenant(
    session: Session, name: str, *, is_admin: bool = False, own: OwnQuotas | None = None
) -> Tenant:
    """Add a tenant.

    Args:
        session: a write transaction.
        name: a name that no other tenant has.
        is_admin: whether it administers the server.
        own: its own quotas; None means the server's.

    Raises:
        ConflictError: another tenant has the name.
    """
    tenant = _insert_tenant(session, name, is_admin=is_admin, own=own or OwnQuotas())
    if tenant is None:
        raise ConflictError(f"a tenant named {name!r} already exists", param="name")
    return tenant


def ensure_tenant(session: Session, name: str, *, is_admin: bool) -> Tenant:
    """Find a tenant by its name, or add it; concurrent calls get the same tenant.

    Args:
        session: a write transaction.
        name: of the tenant.
        is_admin: used if the tenant is added.
    """
    added = _insert_tenant(session, name, is_admin=is_admin, own=OwnQuotas())
    if added is not None:
        return added
    return session.scalars(sa.select(Tenant).where(Tenant.name == name)).one()


def _insert_tenant(session: Session, name: str, *, is_admin: bool, own: OwnQuotas) -> Tenant | None:
    insert = sqlite.insert if is_sqlite(session) else postgresql.insert
    statement = insert(Tenant).values(
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
    tenant = session.get(Tenant, tenant_id)
    if tenant is None:
        raise NotFoundError("tenant", tenant_id)
    return tenant


def list_tenants(session: Session, *, after: str | None, limit: int) -> Page[Tenant]:
    """Return a page of all tenants, newest first.

    Raises:
        NotFoundError: ``after`` is not one of them.
    """
    return newest_first(session, sa.select(Tenant), Tenant, after=after, limit=limit)


def change_quotas(session: Session, tenant_id: str, own: Mapping[str, int | None]) -> Tenant:
    """Change a tenant's own quotas; what exceeds a smaller quota stays, but nothing is added.

    Args:
        session: a write transaction.
        tenant_id: of the tenant.
        own: the quotas to change, by name: see :class:`OwnQuotas`.

    Raises:
        NotFoundError: the tenant does not exist.
    """
    tenant = lock_tenant(session, tenant_id)
    for name in vars(OwnQuotas(**own)).keys() & own.keys():
        setattr(tenant, name, own[name])
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
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFoundError("key", key_id)
    key.revoked_at = key.revoked_at or database_now(session)


def authenticate_all(session: Session, secrets: Sequence[str]) -> list[KeyHolder | None]:
    """Return, for each of several secrets, the tenant that has it as an unrevoked key.

    The table is searched by the secrets' hashes, so that the timing does not reveal how much of a
    guess was right.
    """
    hashes = [_hash(secret) for secret in secrets]
    rows = session.execute(_HOLDERS, {"hashes": list(set(hashes))})
    holders = {row[0]: KeyHolder(row[1], row[2], row[3], row[4]) for row in rows}
    return [holders.get(wanted) for wanted in hashes]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def lock_tenant(session: Session, tenant_id: str) -> Tenant:
    """Load a tenant and lock its quotas until the transaction ends.

    Raises:
        NotFoundError: it does not exist.
    """
    query = sa.select(Tenant).where(Tenant.id == tenant_id).with_for_update()
    tenant = session.scalars(query).one_or_none()
    if tenant is None:
        raise NotFoundError("tenant", tenant_id)
    return tenant


def lock_tenants(session: Session, tenant_ids: Collection[str]) -> None:
    """Lock the quotas of some tenants until the transaction ends.

    Tenants are always locked in the same order. Those that do not exist are skipped.
    """
    session.execute(_LOCK, {"ids": list(tenant_ids)}).all()


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Return the bytes of a tenant's data sets and artifacts."""
    total = 0
    for table in (Dataset, Artifact):
        query = sa.select(sa.func.coalesce(sa.func.sum(table.bytes), 0))
        total += int(session.scalars(query.where(table.tenant_id == tenant_id)).one())
    return total
