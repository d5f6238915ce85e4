"""Tenants and their quotas."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now, insert_into
from store.database.identifiers import new_identifier
from store.database.pages import Page, newest_first
from store.errors import ConflictError, TenantInvalidError, found
from store.tables import Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from store.settings import Settings

_MOST_CHARACTERS = 128
# Categories of characters that cannot be seen: control, format, surrogate, private, unassigned, and
# separators of lines and paragraphs.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters, marks and symbols that cannot be seen either, first and last of each range: those that
# Unicode calls Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 16.0) beyond the
# categories above, the Braille pattern without dots, and the two that stand for what could not be
# shown: an object (U+FFFC), and bytes that are no text (U+FFFD).
_BLANK = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFFC, 0xFFFD),
    (0xE0100, 0xE01EF),
)
_SPACES = frozenset("\t\n\r")  # typed or pasted; they become spaces
_EXISTS = Tenant.deleted_at.is_(None)
_LOCK = sa.select(Tenant).where(Tenant.id == sa.bindparam("id"), _EXISTS).with_for_update()


def quota(own: int | None, *, default: int) -> int:
    """Return the quota that holds for a tenant: its own, or else the server's setting."""
    return default if own is None else own


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
                name: quota(getattr(tenant, name), default=limit)
                for name, limit in vars(self).items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class OwnQuotas:
    """A tenant's own quotas; None is the server's setting."""

    max_queued: int | None = None
    max_running: int | None = None
    max_bytes: int | None = None


def normal_name(name: str) -> str:
    """Return the one form of a tenant's name, so that names which look alike are equal.

    It is in Unicode's form NFKC, with single spaces and none at its ends.

    Raises:
        TenantInvalidError: the name is empty or too long, or has characters that cannot be seen.
    """
    normal = unicodedata.normalize("NFKC", name)
    # Looked for first: for `split`, line separators and some control characters are white space.
    hidden = [each for each in normal if _is_invisible(each)]
    if hidden:
        reason = f"name has a character that cannot be seen, U+{ord(hidden[0]):04X}"
        raise TenantInvalidError(reason, param="name")
    normal = " ".join(normal.split())
    if not 0 < len(normal) <= _MOST_CHARACTERS:
        raise TenantInvalidError(f"name must have 1 to {_MOST_CHARACTERS} characters", param="name")
    return normal


def _is_invisible(character: str) -> bool:
    if character in _SPACES:
        return False
    if unicodedata.category(character) in _INVISIBLE:
        return True
    return any(first <= ord(character) <= last for first, last in _BLANK)


def create_tenant(
    session: Session, name: str, *, is_admin: bool = False, own: OwnQuotas | None = None
) -> Tenant:
    """Add a tenant, which may have quotas of its own.

    Raises:
        ConflictError: another tenant has the name.
        TenantInvalidError: the name cannot be one.
    """
    name = normal_name(name)
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
    query = sa.select(Tenant).where(Tenant.id == tenant_id, _EXISTS)
    return found(session.scalars(query).one_or_none(), "tenant", tenant_id)


def suspend_tenant(session: Session, tenant_id: str) -> Tenant:
    """Refuse a tenant's keys and leave its queued jobs waiting; its running jobs go on.

    Raises:
        NotFoundError: it does not exist.
    """
    tenant = lock_tenant(session, tenant_id)
    tenant.suspended_at = tenant.suspended_at or database_now(session)
    return tenant


def resume_tenant(session: Session, tenant_id: str) -> Tenant:
    """End a tenant's suspension.

    Raises:
        NotFoundError: it does not exist.
    """
    tenant = lock_tenant(session, tenant_id)
    tenant.suspended_at = None
    return tenant


def list_tenants(session: Session, *, after: str | None, limit: int) -> Page[Tenant]:
    """Return a page of all tenants, newest first.

    Raises:
        NotFoundError: ``after`` is not one of them.
    """
    return newest_first(
        session, sa.select(Tenant), Tenant, after=after, limit=limit, filters=[_EXISTS]
    )


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


def lock_tenant(session: Session, tenant_id: str) -> Tenant:
    """Load a tenant and lock its quotas until the transaction ends.

    Raises:
        NotFoundError: it does not exist.
    """
    return found(session.scalars(_LOCK, {"id": tenant_id}).one_or_none(), "tenant", tenant_id)


def lock_even_deleted(session: Session, tenant_id: str) -> Tenant | None:
    """Load and lock a tenant, also a deleted one, whose last jobs may still store something."""
    query = sa.select(Tenant).where(Tenant.id == tenant_id).with_for_update()
    return session.scalars(query).one_or_none()
