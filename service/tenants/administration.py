"""Manage tenants and keys, for the API and the command line; every change is in the audit trail."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from service.tenants import documents
from store.administration.audit import Action, Actor, list_audit, record
from store.administration.keys import create_key, list_keys, replace_key, revoke_key
from store.administration.removal import delete_tenant, remove_deleted
from store.errors import OwnTenantError
from store.jobs.actions import count_jobs
from store.states import JobStatus
from store.storage.space import used_bytes
from store.tenants import (
    OwnQuotas,
    change_quotas,
    create_tenant,
    get_tenant,
    list_tenants,
    resume_tenant,
    suspend_tenant,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from store.database.connection import Database
    from store.tables import Tenant
    from store.tenants import Quotas


class Administration:
    """The tenants and keys in the tables; every call is one transaction.

    Methods raise NotFoundError if the tenant or key does not exist.

    Args:
        database: the tables.
        quotas: of tenants without their own.
        actor: who acts, for the audit trail.
    """

    def __init__(self, database: Database, *, quotas: Quotas, actor: Actor) -> None:
        self._database = database
        self._quotas = quotas
        self._actor = actor

    def create(self, new: documents.NewTenant) -> documents.TenantDocument:
        """Create a tenant.

        Raises:
            ConflictError: the name is taken.
        """
        changes = new.changes()
        with self._database.write() as session:
            tenant = create_tenant(
                session, new.name, is_admin=new.is_admin, own=OwnQuotas(**changes)
            )
            details = {"name": tenant.name, "is_admin": tenant.is_admin, **changes}
            self._record(session, "tenant.created", tenant.id, details=details)
        return self._show(tenant)

    def list(self, *, after: str | None, limit: int) -> documents.TenantList:
        """Return a page of the tenants, newest first."""
        with self._database.read() as session:
            page = list_tenants(session, after=after, limit=limit)
        return documents.TenantList.of(
            [self._show(row) for row in page.rows], has_more=page.has_more
        )

    def change_quotas(self, tenant_id: str, new: documents.NewQuotas) -> documents.TenantDocument:
        """Change a tenant's quotas."""
        changes = new.changes()
        with self._database.write() as session:
            tenant = change_quotas(session, tenant_id, changes)
            self._record(session, "tenant.quotas_changed", tenant.id, details=changes)
        return self._show(tenant)

    def suspend(self, tenant_id: str) -> documents.TenantDocument:
        """Refuse a tenant's keys and leave its queued jobs waiting.

        Raises:
            OwnTenantError: it is the caller's own.
        """
        self._refuse_own(tenant_id)
        with self._database.write() as session:
            tenant = suspend_tenant(session, tenant_id)
            self._record(session, "tenant.suspended", tenant.id)
        return self._show(tenant)

    def resume(self, tenant_id: str) -> documents.TenantDocument:
        """End a tenant's suspension."""
        with self._database.write() as session:
            tenant = resume_tenant(session, tenant_id)
            self._record(session, "tenant.resumed", tenant.id)
        return self._show(tenant)

    def delete(self, tenant_id: str) -> None:
        """Delete a tenant with all that it owns.

        Raises:
            OwnTenantError: it is the caller's own.
        """
        self._refuse_own(tenant_id)
        with self._database.write() as session:
            name = get_tenant(session, tenant_id).name
            delete_tenant(session, tenant_id)
            self._record(session, "tenant.deleted", tenant_id, details={"name": name})
        remove_deleted(self._database)  # workers repeat it when running jobs have ended

    def usage(self, tenant_id: str) -> documents.UsageDocument:
        """Return a tenant's usage and quotas."""
        with self._database.read() as session:
            tenant = get_tenant(session, tenant_id)
            counts = count_jobs(session, tenant.id)
            return documents.UsageDocument(
                tenant=tenant.id,
                jobs={status: counts.get(status, 0) for status in JobStatus},
                stored_bytes=used_bytes(session, tenant.id),
                quotas=self._quotas_of(tenant),
            )

    def create_key(self, tenant_id: str, new: documents.NewKey) -> documents.NewKeyDocument:
        """Create a key; only the returned document contains its secret.

        Raises:
            KeyInvalidError: it would have expired already.
        """
        with self._database.write() as session:
            key, secret = create_key(session, tenant_id, name=new.name, expires_at=new.expires_at)
            details = new.model_dump(mode="json", exclude_none=True)
            self._record(session, "key.created", tenant_id, subject_id=key.id, details=details)
        return documents.NewKeyDocument.of_row(key, tenant=key.tenant_id, secret=secret)

    def replace_key(
        self, key_id: str, replacement: documents.KeyReplacement, *, owner_id: str | None
    ) -> documents.NewKeyDocument:
        """Create a key in place of another one; ``owner_id`` is whose it must be, None anyone's.

        Raises:
            KeyInvalidError: the old one is revoked or expired, or the new one would be.
        """
        with self._database.write() as session:
            key, secret = replace_key(
                session,
                key_id,
                owner_id=owner_id,
                grace=timedelta(seconds=replacement.grace_seconds),
                expires_at=replacement.expires_at,
            )
            details = {"by": key.id, **replacement.model_dump(mode="json", exclude_none=True)}
            self._record(session, "key.replaced", key.tenant_id, subject_id=key_id, details=details)
        return documents.NewKeyDocument.of_row(key, tenant=key.tenant_id, secret=secret)

    def list_keys(self, tenant_id: str, *, after: str | None, limit: int) -> documents.KeyList:
        """Return a page of a tenant's keys, newest first, without their secrets."""
        with self._database.read() as session:
            page = list_keys(session, tenant_id, after=after, limit=limit)
        return documents.KeyList.of(
            [documents.KeyDocument.of(key) for key in page.rows], has_more=page.has_more
        )

    def revoke_key(self, key_id: str) -> None:
        """Revoke a key, effective at once."""
        with self._database.write() as session:
            key = revoke_key(session, key_id)
            self._record(session, "key.revoked", key.tenant_id, subject_id=key_id)

    def audit(
        self, *, tenant_id: str | None, action: Action | None, after: str | None, limit: int
    ) -> documents.AuditList:
        """Return a page of the audit trail, newest first; also of tenants that are gone."""
        with self._database.read() as session:
            page = list_audit(session, tenant_id=tenant_id, action=action, after=after, limit=limit)
        return documents.AuditList.of(
            [documents.AuditDocument.of(event) for event in page.rows], has_more=page.has_more
        )

    def _record(
        self,
        session: Session,
        action: Action,
        tenant_id: str,
        *,
        subject_id: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        record(
            session,
            self._actor,
            action,
            tenant_id=tenant_id,
            subject_id=subject_id or tenant_id,
            details=details,
        )

    def _refuse_own(self, tenant_id: str) -> None:
        if tenant_id == self._actor.tenant_id:
            raise OwnTenantError("this is your own tenant: let another administrator do it")

    def _show(self, tenant: Tenant) -> documents.TenantDocument:
        return documents.TenantDocument.of_row(tenant, quotas=self._quotas_of(tenant))

    def _quotas_of(self, tenant: Tenant) -> documents.QuotasDocument:
        return documents.QuotasDocument.of_row(self._quotas.of(tenant))
