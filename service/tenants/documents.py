"""The JSON documents of tenants and their keys."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from service.http.documents import Answer, Body, Count, Listed, Name, Page
from store.administration.audit import Action  # noqa: TC001 - pydantic reads it when it runs
from store.errors import TenantInvalidError
from store.states import JobStatus  # noqa: TC001 - as above
from store.tenants import normal_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.tables import ApiKey, AuditEvent

MOST_GRACE_SECONDS = 30 * 24 * 3600


def _normal_name(name: str) -> str:
    try:
        return normal_name(name)
    except TenantInvalidError as error:
        raise ValueError(str(error)) from error


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

    name: Annotated[str, StringConstraints(max_length=4 * 128), AfterValidator(_normal_name)]
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
    suspended_at: datetime | None


class UsageDocument(Answer):
    """A tenant's usage and quotas."""

    object: Literal["tenant.usage"] = "tenant.usage"
    tenant: str
    jobs: dict[JobStatus, int]
    stored_bytes: int
    quotas: QuotasDocument


class NewKey(Body):
    """A key to create; it never expires unless ``expires_at`` is set."""

    name: Name | None = None
    expires_at: AwareDatetime | None = None


class KeyReplacement(Body):
    """How a key is replaced: how long the old one still works, and when the new one expires."""

    grace_seconds: Annotated[int, Field(ge=0, le=MOST_GRACE_SECONDS)] = 0
    expires_at: AwareDatetime | None = None


class KeyDocument(Listed):
    """A key without its secret."""

    object: Literal["api_key"] = "api_key"
    tenant: str
    name: str | None
    created_at: datetime
    expires_at: datetime | None
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


class AuditActor(Answer):
    """Who acted: a tenant with its key; neither for the command line on the server."""

    tenant: str | None
    key: str | None
    request_id: str | None


class AuditDocument(Listed):
    """Who did what to a tenant, a key, a data set or a job."""

    object: Literal["audit_event"] = "audit_event"
    created_at: datetime
    action: Action
    actor: AuditActor
    tenant: str
    subject: str
    details: dict[str, Any]

    @classmethod
    def of(cls, event: AuditEvent) -> Self:
        """Build the document from a row."""
        actor = AuditActor(
            tenant=event.actor_tenant_id, key=event.actor_key_id, request_id=event.request_id
        )
        return cls.of_row(event, actor=actor, tenant=event.tenant_id, subject=event.subject_id)


class AuditList(Page[AuditDocument]):
    """A page of the audit trail, newest first."""
