"""Tenants and their keys as administrators see them, and what they may ask for."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from service.http.documents import Answer, Body, Count, Listed, Name, Page
from store.states import JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.tables import ApiKey, Tenant
    from store.tenants import Quotas


class NewQuotas(Body):
    """A tenant's quotas to be: null is the server's setting, one that is not given stays."""

    max_queued: Count | None = None
    max_running: Count | None = None
    max_bytes: Count | None = None

    def changes(self) -> Mapping[str, int | None]:
        """Return those that are to change."""
        return self.model_dump(include=set(NewQuotas.model_fields), exclude_unset=True)


class NewTenant(NewQuotas):
    """A tenant to be; a quota that is not given is the server's setting."""

    name: Name
    is_admin: bool = False


class QuotasDocument(Answer):
    """What a tenant may have: its own quotas, or else the server's."""

    max_queued: int
    max_running: int
    max_bytes: int


class TenantDocument(Listed):
    """Who owns data sets and jobs."""

    object: Literal["tenant"] = "tenant"
    name: str
    is_admin: bool
    quotas: QuotasDocument
    created_at: datetime

    @classmethod
    def of(cls, tenant: Tenant, quotas: Quotas) -> TenantDocument:
        """Show a row, with what holds for it."""
        return cls.of_row(tenant, quotas=QuotasDocument.of_row(quotas))


class UsageDocument(Answer):
    """What a tenant has, and may have."""

    object: Literal["tenant.usage"] = "tenant.usage"
    tenant: str
    jobs: dict[JobStatus, int]
    stored_bytes: int
    quotas: QuotasDocument

    @classmethod
    def of(
        cls, tenant_id: str, *, jobs: Mapping[JobStatus, int], stored_bytes: int, quotas: Quotas
    ) -> UsageDocument:
        """Show what was counted; every state is there, also one without a job."""
        return cls(
            tenant=tenant_id,
            jobs={status: jobs.get(status, 0) for status in JobStatus},
            stored_bytes=stored_bytes,
            quotas=QuotasDocument.of_row(quotas),
        )


class NewKey(Body):
    """A key to be."""

    name: Name | None = None


class KeyDocument(Listed):
    """A key as a list shows it, without its secret."""

    object: Literal["api_key"] = "api_key"
    tenant: str
    name: str | None
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyDocument:
        """Show a row."""
        return cls.of_row(key, tenant=key.tenant_id)


class NewKeyDocument(KeyDocument):
    """A new key, with its secret: this answer alone shows it."""

    secret: str

    @classmethod
    def of_new(cls, key: ApiKey, *, secret: str) -> NewKeyDocument:
        """Show a new row and its secret."""
        return cls.of_row(key, tenant=key.tenant_id, secret=secret)


class TenantList(Page[TenantDocument]):
    """A page of tenants, newest first."""


class KeyList(Page[KeyDocument]):
    """A page of a tenant's keys, newest first."""
