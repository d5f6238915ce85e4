"""API keys: created, found by their secret, replaced, revoked."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import CLOCK, database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, newest_first
from store.errors import KeyInvalidError, found
from store.tables import ApiKey, Tenant
from store.tenants import get_tenant

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

_SECRET_PREFIX = "hifi_"  # noqa: S105 - a prefix, not a secret
_SECRET_BYTES = 32
_IS_VALID = sa.and_(
    ApiKey.revoked_at.is_(None), sa.or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > CLOCK)
)
# Run for every request: selecting columns is faster than building rows.
_HOLDER = (
    sa.select(ApiKey.id, Tenant.id, Tenant.is_admin, Tenant.suspended_at.is_not(None))
    .join(Tenant, ApiKey.tenant_id == Tenant.id)
    .where(ApiKey.sha256 == sa.bindparam("sha256"), _IS_VALID)
)
_ADMITTED = (
    sa.select(ApiKey.id)
    .join(Tenant, ApiKey.tenant_id == Tenant.id)
    .where(_IS_VALID, Tenant.suspended_at.is_(None))
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant that sends a request, and its key; the key is None if none is required."""

    key_id: str | None
    tenant_id: str
    is_admin: bool
    is_suspended: bool = False


def create_key(
    session: Session,
    tenant_id: str,
    *,
    name: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Add a key.

    Args:
        session: a write transaction.
        tenant_id: its owner.
        name: for people.
        expires_at: when it ends by itself; None is never.

    Returns:
        The row, and the secret, which is not stored and cannot be shown again.

    Raises:
        NotFoundError: the tenant does not exist.
        KeyInvalidError: the key would have expired already.
    """
    get_tenant(session, tenant_id)
    now = database_now(session)
    if expires_at is not None and expires_at <= now:
        raise KeyInvalidError(f"expires_at={expires_at:%FT%TZ} is past", param="expires_at")
    secret = _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(
        id=new_identifier("key"),
        tenant_id=tenant_id,
        name=name,
        sha256=_hash(secret),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def replace_key(
    session: Session,
    key_id: str,
    *,
    owner_id: str | None,
    grace: timedelta,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Add a key in place of another one, which ends after a time to switch over.

    Args:
        session: a write transaction.
        key_id: the key to replace; the new one has its name and owner.
        owner_id: the tenant that replaces a key of its own; None is an administrator, who may
            replace any.
        grace: how long both work.
        expires_at: when the new key ends by itself. By default it lasts as long as the old one did
            when it was new; an owner cannot let it last longer.

    Returns:
        As :func:`create_key`.

    Raises:
        NotFoundError: it does not exist, or belongs to another tenant.
        KeyInvalidError: it is revoked or expired, or the new one would be, or would last longer
            than its owner may let it.
    """
    query = sa.select(ApiKey, _IS_VALID).where(ApiKey.id == key_id).with_for_update(of=ApiKey)
    if owner_id is not None:
        query = query.where(ApiKey.tenant_id == owner_id)
    old, is_valid = found(session.execute(query).one_or_none(), "key", key_id)
    if not is_valid:
        raise KeyInvalidError(f"key {key_id} is revoked or expired: create a new one")
    now = database_now(session)
    if old.expires_at is not None:
        latest = now + (old.expires_at - old.created_at)
        if expires_at is None:
            expires_at = latest
        elif owner_id is not None and expires_at > latest:
            reason = (
                f"expires_at must be {latest:%FT%TZ} or earlier: keys like {key_id} last no longer"
            )
            raise KeyInvalidError(reason, param="expires_at")
    old.expires_at = min(filter(None, (old.expires_at, now + grace)))
    return create_key(session, old.tenant_id, name=old.name, expires_at=expires_at)


def list_keys(session: Session, tenant_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
    """Return a page of a tenant's keys, newest first, including revoked and expired ones.

    Raises:
        NotFoundError: the tenant does not exist, or ``after`` is not one of its keys.
    """
    get_tenant(session, tenant_id)
    query = sa.select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    return newest_first(session, query, ApiKey, after=after, limit=limit)


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key, with immediate effect.

    Raises:
        NotFoundError: it does not exist.
    """
    key = found(session.get(ApiKey, key_id), "key", key_id)
    key.revoked_at = key.revoked_at or database_now(session)
    return key


def authenticate(session: Session, secret: str) -> Caller | None:
    """Return the holder of a valid key; None if the secret is not one.

    The query looks for the secret's hash, so that its duration does not reveal how much of a guess
    was right.
    """
    row = session.execute(_HOLDER, {"sha256": _hash(secret)}).one_or_none()
    return None if row is None else Caller(*row)


def find_admitted(session: Session, key_ids: Collection[str]) -> frozenset[str]:
    """Return those of some keys that still admit requests: valid, of no suspended tenant."""
    return frozenset(session.scalars(_ADMITTED.where(ApiKey.id.in_(key_ids))))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
