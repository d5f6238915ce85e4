"""store.tenants: keys are kept as hashes, and can be revoked."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.errors import ConflictError, NotFoundError
from store.storage import Blob
from store.tables import ApiKey
from store.tenants import (
    OwnQuotas,
    Quotas,
    authenticate,
    create_key,
    create_tenant,
    ensure_tenant,
    get_tenant,
    list_tenants,
    revoke_key,
    stored_bytes,
)
from tests.store.queues import add_split, add_tenant

if TYPE_CHECKING:
    from store.database.connection import Database


class TestTenants:
    def test_a_name_is_taken_once(self, database: Database):
        add_tenant(database, "a")
        with pytest.raises(ConflictError, match="'a'"):
            add_tenant(database, "a")

    def test_only_the_row_makes_an_administrator(self, database: Database):
        with database.write() as session:
            assert create_tenant(session, "root", is_admin=True).is_admin
            assert not create_tenant(session, "plain").is_admin

    def test_are_made_once_however_many_ask(self, database: Database):
        def ensure(_: int) -> str:
            with database.write() as session:
                return ensure_tenant(session, "default", is_admin=True).id

        with ThreadPoolExecutor(8) as pool:
            (tenant_id,) = set(pool.map(ensure, range(8)))
        with database.read() as session:
            assert get_tenant(session, tenant_id).is_admin

    def test_have_their_own_quotas_or_the_servers(self, database: Database):
        with database.write() as session:
            own = create_tenant(session, "a", own=OwnQuotas(max_running=0))
        server = Quotas(max_queued=5, max_running=6, max_bytes=7)
        assert server.of(own) == Quotas(max_queued=5, max_running=0, max_bytes=7)

    def test_are_listed_newest_first(self, database: Database):
        added = [add_tenant(database, name) for name in "abc"]
        with database.read() as session:
            page = list_tenants(session, after=None, limit=2)
            rest = list_tenants(session, after=page.rows[-1].id, limit=2)
        assert [tenant.id for tenant in (*page.rows, *rest.rows)] == added[::-1]
        assert (page.has_more, rest.has_more) == (True, False)


class TestKeys:
    def test_lead_to_their_tenant(self, database: Database):
        tenants = [add_tenant(database, name) for name in "ab"]
        with database.write() as session:
            secrets = [create_key(session, tenant)[1] for tenant in (*tenants, tenants[0])]
        assert len(set(secrets)) == 3
        with database.read() as session:
            found = [authenticate(session, secret) for secret in secrets]
        assert [holder and holder.tenant_id for holder in found] == [*tenants, tenants[0]]

    @pytest.mark.parametrize("secret", ["", "hifi_", "hifi_wrong", "ü\x00"])
    def test_anything_else_is_refused(self, database: Database, secret: str):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            create_key(session, tenant)
        with database.read() as session:
            assert authenticate(session, secret) is None

    def test_only_the_hash_is_kept(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            key, secret = create_key(session, tenant, name="ci")
        assert secret.startswith("hifi_")
        assert len(secret) >= len("hifi_") + 43  # 32 bytes in base64
        with database.read() as session:
            row = session.execute(sa.select(ApiKey.__table__)).one()
        assert row.sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert not any(secret in str(value) or secret[5:] in str(value) for value in row)
        assert (row.id, row.name) == (key.id, "ci")

    def test_a_revoked_one_is_refused_at_once(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            (key, secret), (_, other) = (create_key(session, tenant) for _ in range(2))
        with database.write() as session:
            revoke_key(session, key.id)
        with database.read() as session:
            assert authenticate(session, secret) is None
            assert authenticate(session, other) is not None

    def test_of_an_unknown_tenant_are_refused(self, database: Database):
        with database.write() as session, pytest.raises(NotFoundError):
            create_key(session, "ten_none")
        with database.write() as session, pytest.raises(NotFoundError):
            revoke_key(session, "key_none")


class TestStoredBytes:
    def test_are_those_of_this_tenant(self, database: Database):
        tenants = [add_tenant(database, name) for name in "ab"]
        for tenant, size in zip((*tenants, tenants[0]), (10, 200, 3), strict=True):
            add_split(database, tenant, Blob(sha256="0" * 64, bytes=size))
        with database.read() as session:
            assert [stored_bytes(session, tenant) for tenant in tenants] == [13, 200]
