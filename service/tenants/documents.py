"""The JSON documents of tenants and their keys."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal, Self

from service.http.documents import Answer, Body, Count, Listed, Name, Page
from store.states import JobStatus  # noqa: TC001 - pydantic reads it when it runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.tables import ApiKey


class NewQuotas(Body):
    """Changes of a tenant's quotas: null resets one to the server's setting; others stay."""

    max_queued: Count | None = None
    max_running: Count | None = None
    max_bytes: Count | None = None

    def changes(self) -> Mapping[str, int | None]:
        """Return the quotas to change."""
        return self.model_dump(include=set(NewQuotas.model_fields), exclude_unset=True)


class NewTenant(NewQuotas):
    """A tenant to create; missing quotas are the server's settings."""

    name: Name
    is_admin: bool = False


class QuotasDocument(Answer):
    """The quotas that apply to a tenant: its own, or else the server's."""

    max_queued: int
    max_running: int
    max_bytes: int


class TenantDocument(Listed):
    """An owner of data sets and jobs."""

    object: Literal["tenant"] = "tenant"
    name: str
    is_admin: bool
    quotas: QuotasDocument
    created_at: datetime


class UsageDocument(Answer):
    """A tenant's usage and quotas."""

    object: Literal["tenant.usage"] = "tenant.usage"
    tenant: str
    jobs: dict[JobStatus, int]
    stored_bytes: int
    quotas: QuotasDocument


class NewKey(Body):
    """A key to create."""

    name: Name | None = None


class KeyDocument(Listed):
    """A key without its secret."""

    object: Literal["api_key"] = "api_key"
    tenant: str
    name: str | None
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Build the document from a row."""
        return cls.of_row(key, tenant=key.tenant_id)


class NewKeyDocument(KeyDocument):
    """A new key with its secret, which only this response contains."""

    secret: str


class TenantList(Page[TenantDocument]):
    """A page of tenants, newest first."""


class KeyList(Page[KeyDocument]):
    """A page of a tenant's keys, newest first."""
