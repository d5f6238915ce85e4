"""Manage tenants, keys and all jobs directly in the tables, with the client's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ValidationError

from service.jobs.administration import JobAdministration
from service.tenants.administration import Administration
from service.tenants.documents import KeyReplacement, NewKey, NewQuotas, NewTenant
from store.administration.audit import ON_THE_SERVER, Action
from store.database.outages import open_database
from store.errors import StoreError
from store.settings import read_settings
from store.states import JobStatus
from store.tenants import Quotas

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import AdminJob, AuditEvent, Key, Page, Tenant, Usage

_Body = TypeVar("_Body", bound=BaseModel)


class TenantError(StoreError):
    """A field of a tenant or key is invalid."""

    code = "invalid_request"


@contextmanager
def open_tables() -> Iterator[Tables]:
    """Open the tables of the settings.

    Raises:
        SettingsError: a setting is invalid.
        SchemaError: the tables are not of this version.
        DatabaseAwayError: the database does not answer.
    """
    settings = read_settings()
    with open_database(settings.database_url) as database:
        administration = Administration(
            database, quotas=Quotas.of_settings(settings), actor=ON_THE_SERVER
        )
        yield Tables(
            _Tenants(administration),
            _Keys(administration),
            _AllJobs(JobAdministration(database, actor=ON_THE_SERVER)),
        )


@dataclass(frozen=True)
class Tables:
    """The tables, with the part of a :class:`service.client.Client` that administrators need."""

    tenants: _Tenants
    keys: _Keys
    all_jobs: _AllJobs


Target: TypeAlias = "Client | Tables"  # both manage tenants, keys and all jobs


@dataclass(frozen=True)
class _Tenants:
    administration: Administration

    def create(self, name: str, *, is_admin: bool, quotas: Mapping[str, int]) -> Tenant:
        new = _checked(NewTenant, {"name": name, "is_admin": is_admin, **quotas})
        return cast("Tenant", _shown(self.administration.create(new)))

    def list(self, *, after: str | None, limit: int) -> Page[Tenant]:
        return cast("Page[Tenant]", _shown(self.administration.list(after=after, limit=limit)))

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        new = _checked(NewQuotas, quotas)
        return cast("Tenant", _shown(self.administration.change_quotas(tenant_id, new)))

    def suspend(self, tenant_id: str) -> Tenant:
        return cast("Tenant", _shown(self.administration.suspend(tenant_id)))

    def resume(self, tenant_id: str) -> Tenant:
        return cast("Tenant", _shown(self.administration.resume(tenant_id)))

    def delete(self, tenant_id: str) -> None:
        self.administration.delete(tenant_id)

    def audit(
        self, *, tenant_id: str | None, action: str | None, after: str | None, limit: int
    ) -> Page[AuditEvent]:
        page = self.administration.audit(
            tenant_id=tenant_id, action=cast("Action | None", action), after=after, limit=limit
        )
        return cast("Page[AuditEvent]", _shown(page))

    def usage(self, tenant_id: str) -> Usage:
        return cast("Usage", _shown(self.administration.usage(tenant_id)))


@dataclass(frozen=True)
class _Keys:
    administration: Administration

    def create(self, tenant_id: str, *, name: str | None, expires_at: datetime | None) -> Key:
        new = _checked(NewKey, {"name": name, "expires_at": expires_at})
        return cast("Key", _shown(self.administration.create_key(tenant_id, new)))

    def replace(self, key_id: str, *, grace_seconds: int, expires_at: datetime | None) -> Key:
        fields = {"grace_seconds": grace_seconds, "expires_at": expires_at}
        replacement = _checked(KeyReplacement, fields)
        new = self.administration.replace_key(key_id, replacement, owner_id=None)
        return cast("Key", _shown(new))

    def list(self, tenant_id: str | None, *, after: str | None, limit: int) -> Page[Key]:
        if tenant_id is None:
            raise TenantError("no tenant: name the one whose keys to list")
        page = self.administration.list_keys(tenant_id, after=after, limit=limit)
        return cast("Page[Key]", _shown(page))

    def revoke(self, key_id: str) -> None:
        self.administration.revoke_key(key_id)


@dataclass(frozen=True)
class _AllJobs:
    administration: JobAdministration

    def list(
        self, *, status: str | None, tenant: str | None, after: str | None, limit: int
    ) -> Page[AdminJob]:
        page = self.administration.list(
            status=None if status is None else JobStatus(status),
            tenant=tenant,
            after=after,
            limit=limit,
        )
        return cast("Page[AdminJob]", _shown(page))

    def cancel(self, job_id: str) -> AdminJob:
        return cast("AdminJob", _shown(self.administration.cancel(job_id)))


def _shown(document: BaseModel) -> object:
    """Return a document as the API's plain JSON."""
    return document.model_dump(mode="json")


def _checked(kind: type[_Body], fields: Mapping[str, Any]) -> _Body:
    """Validate a body as the API does."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise TenantError(f"{name}={first['input']!r} is not allowed: {first['msg']}") from error
