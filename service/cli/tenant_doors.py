"""Two doors to the tenants: the server's API, and its tables; both give the same documents."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ValidationError

from service.cli import options
from service.embedded.outages import told_outages
from service.jobs.schemas import (
    KeyDocument,
    KeyList,
    NewKey,
    NewKeyDocument,
    NewQuotas,
    NewTenant,
    TenantDocument,
    TenantList,
    UsageDocument,
    envelope,
)
from store.database import Database
from store.errors import NotFoundError, StoreError
from store.jobs import count_jobs
from store.schema import check
from store.settings import read_settings
from store.tenants import (
    OwnQuotas,
    Quotas,
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
    from service.client import Client
    from service.client.documents import Key, Page, Tenant, Usage

_PAGE = 100
Body = TypeVar("Body", bound=BaseModel)


class TenantError(StoreError):
    """What is asked of a tenant cannot be."""

    code = "invalid_request"


class TenantDoor(Protocol):
    """What can be done to tenants and keys."""

    def create(self, name: str, *, is_admin: bool, quotas: Mapping[str, int]) -> Tenant:
        """Add a tenant."""

    def list(self, *, after: str | None, limit: int) -> Page[Tenant]:
        """Take a page of the tenants, newest first."""

    def find(self, tenant: str) -> str:
        """Give the id of a tenant that is named by its id or its name.

        Raises:
            NotFoundError: no tenant has that name.
        """

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        """Change a tenant's quotas; None is the server's setting."""

    def usage(self, tenant_id: str) -> Usage:
        """Tell what a tenant has and may have."""

    def list_keys(self, tenant_id: str, *, after: str | None, limit: int) -> Page[Key]:
        """Take a page of a tenant's keys, newest first; without their secrets."""

    def create_key(self, tenant_id: str, *, name: str | None) -> Key:
        """Add a key; only this answer holds its secret."""

    def revoke_key(self, key_id: str) -> None:
        """Make a key worthless at once."""


@contextmanager
def open_server(args: argparse.Namespace) -> Iterator[TenantDoor]:
    """Open the door through the API, for administrators."""
    with options.connect(args) as client:
        yield _Server(client)


@contextmanager
def open_tables() -> Iterator[TenantDoor]:
    """Open the door straight to the tables of the settings.

    Raises:
        SettingsError: a setting cannot be followed.
        SchemaError: the tables are not those of this version.
        DatabaseAwayError: the database does not answer.
    """
    settings = read_settings()
    database = Database(settings.database_url, pool_size=1)
    quotas = Quotas(
        max_queued=settings.tenant_max_queued,
        max_running=settings.tenant_max_running,
        max_bytes=settings.tenant_max_bytes,
    )
    try:
        with told_outages():
            check(database)
            yield _Tables(database, quotas=quotas)
    finally:
        database.close()


class _Server:
    """The API."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str, *, is_admin: bool, quotas: Mapping[str, int]) -> Tenant:
        return self._client.tenants.create(name, is_admin=is_admin, quotas=quotas)

    def list(self, *, after: str | None, limit: int) -> Page[Tenant]:
        return self._client.tenants.list(after=after, limit=limit)

    def find(self, tenant: str) -> str:
        return _find(self, tenant)

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        return self._client.tenants.change_quotas(tenant_id, quotas)

    def list_keys(self, tenant_id: str, *, after: str | None, limit: int) -> Page[Key]:
        return self._client.keys.list(tenant_id, after=after, limit=limit)

    def usage(self, tenant_id: str) -> Usage:
        return self._client.tenants.usage(tenant_id)

    def create_key(self, tenant_id: str, *, name: str | None) -> Key:
        return self._client.keys.create(tenant_id, name=name)

    def revoke_key(self, key_id: str) -> None:
        self._client.keys.revoke(key_id)


class _Tables:
    """The tables."""

    def __init__(self, database: Database, *, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    def create(self, name: str, *, is_admin: bool, quotas: Mapping[str, int]) -> Tenant:
        new = _checked(NewTenant, {"name": name, "is_admin": is_admin, **quotas})
        own = OwnQuotas(
            max_queued=new.max_queued, max_running=new.max_running, max_bytes=new.max_bytes
        )
        with self._database.write() as session:
            tenant = create_tenant(session, new.name, is_admin=new.is_admin, own=own)
        document = TenantDocument.of(tenant, self._quotas.of(tenant))
        return cast("Tenant", document.model_dump(mode="json"))

    def list(self, *, after: str | None, limit: int) -> Page[Tenant]:
        with self._database.read() as session:
            page = list_tenants(session, after=after, limit=limit)
        data = [TenantDocument.of(tenant, self._quotas.of(tenant)) for tenant in page.rows]
        listed = TenantList(**envelope(data, has_more=page.has_more))
        return cast("Page[Tenant]", listed.model_dump(mode="json"))

    def find(self, tenant: str) -> str:
        return _find(self, tenant)

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        new = _checked(NewQuotas, quotas)
        with self._database.write() as session:
            tenant = change_quotas(session, tenant_id, new.changes())
        document = TenantDocument.of(tenant, self._quotas.of(tenant))
        return cast("Tenant", document.model_dump(mode="json"))

    def list_keys(self, tenant_id: str, *, after: str | None, limit: int) -> Page[Key]:
        with self._database.read() as session:
            page = list_keys(session, tenant_id, after=after, limit=limit)
        data = [KeyDocument.of(key) for key in page.rows]
        listed = KeyList(**envelope(data, has_more=page.has_more))
        return cast("Page[Key]", listed.model_dump(mode="json"))

    def usage(self, tenant_id: str) -> Usage:
        with self._database.read() as session:
            tenant = get_tenant(session, tenant_id)
            document = UsageDocument.of(
                tenant.id,
                jobs=count_jobs(session, tenant.id),
                stored_bytes=stored_bytes(session, tenant.id),
                quotas=self._quotas.of(tenant),
            )
        return cast("Usage", document.model_dump(mode="json"))

    def create_key(self, tenant_id: str, *, name: str | None) -> Key:
        new = _checked(NewKey, {"name": name})
        with self._database.write() as session:
            key, secret = create_key(session, tenant_id, name=new.name)
        return cast("Key", NewKeyDocument.of_new(key, secret=secret).model_dump(mode="json"))

    def revoke_key(self, key_id: str) -> None:
        with self._database.write() as session:
            revoke_key(session, key_id)


def _checked(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Check what the API would check."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise TenantError(f"{name}={first['input']!r} is not allowed: {first['msg']}") from error


def _find(door: TenantDoor, tenant: str) -> str:
    if tenant.startswith("ten_"):
        return tenant
    after = None
    while True:
        page = door.list(after=after, limit=_PAGE)
        for known in page["data"]:
            if known["name"] == tenant:
                return known["id"]
        if not page["has_more"]:
            raise NotFoundError("tenant", tenant)
        after = page["last_id"]
