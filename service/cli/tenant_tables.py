"""Manage tenants and keys directly in the tables, with the client's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ValidationError

from service.embedded.outages import open_database
from service.tenants.administration import Administration
from service.tenants.documents import NewKey, NewQuotas, NewTenant
from store.errors import StoreError
from store.settings import read_settings
from store.tenants import Quotas

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import Key, Page, Tenant, Usage

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
        administration = Administration(database, quotas=Quotas.of_settings(settings))
        yield Tables(_Tenants(administration), _Keys(administration))


@dataclass(frozen=True)
class Tables:
    """The tables, with the part of a :class:`service.client.Client` that administrators need."""

    tenants: _Tenants
    keys: _Keys


Target: TypeAlias = "Client | Tables"  # both manage tenants and keys


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

    def usage(self, tenant_id: str) -> Usage:
        return cast("Usage", _shown(self.administration.usage(tenant_id)))


@dataclass(frozen=True)
class _Keys:
    administration: Administration

    def create(self, tenant_id: str, *, name: str | None) -> Key:
        new = _checked(NewKey, {"name": name})
        return cast("Key", _shown(self.administration.create_key(tenant_id, new)))

    def list(self, tenant_id: str, *, after: str | None, limit: int) -> Page[Key]:
        page = self.administration.list_keys(tenant_id, after=after, limit=limit)
        return cast("Page[Key]", _shown(page))

    def revoke(self, key_id: str) -> None:
        self.administration.revoke_key(key_id)


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
