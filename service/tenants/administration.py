"""Manage tenants and keys, for the API and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.tenants import documents
from store.jobs.actions import count_jobs
from store.states import JobStatus
from store.tenants import (
    OwnQuotas,
    change_quotas,
    create_key,
    create_tenant,
    get_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    stored_bytes,
)

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.tables import Tenant
    from store.tenants import Quotas


class Administration:
    """The tenants and keys in the tables; every call is one transaction.

    Methods raise NotFoundError if the tenant or key does not exist.

    Args:
        database: the tables.
        quotas: of tenants without their own.
    """

    def __init__(self, database: Database, *, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    def create(self, new: documents.NewTenant) -> documents.TenantDocument:
        """Create a tenant.

        Raises:
            ConflictError: the name is taken.
        """
        own = OwnQuotas(**new.changes())
        with self._database.write() as session:
            tenant = create_tenant(session, new.name, is_admin=new.is_admin, own=own)
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
        with self._database.write() as session:
            tenant = change_quotas(session, tenant_id, new.changes())
        return self._show(tenant)

    def usage(self, tenant_id: str) -> documents.UsageDocument:
        """Return a tenant's usage and quotas."""
        with self._database.read() as session:
            tenant = get_tenant(session, tenant_id)
            counts = count_jobs(session, tenant.id)
            return documents.UsageDocument(
                tenant=tenant.id,
                jobs={status: counts.get(status, 0) for status in JobStatus},
                stored_bytes=stored_bytes(session, tenant.id),
                quotas=self._quotas_of(tenant),
            )

    def create_key(self, tenant_id: str, new: documents.NewKey) -> documents.NewKeyDocument:
        """Create a key; only the returned document contains its secret."""
        with self._database.write() as session:
            key, secret = create_key(session, tenant_id, name=new.name)
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
            revoke_key(session, key_id)

    def _show(self, tenant: Tenant) -> documents.TenantDocument:
        return documents.TenantDocument.of_row(tenant, quotas=self._quotas_of(tenant))

    def _quotas_of(self, tenant: Tenant) -> documents.QuotasDocument:
        return documents.QuotasDocument.of_row(self._quotas.of(tenant))
