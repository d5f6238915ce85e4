"""store.administration.keys: kept as hashes; they expire, are replaced and revoked."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.administration.keys import authenticate, create_key, list_keys, replace_key, revoke_key
from store.database.connection import database_now
from store.errors import KeyInvalidError, NotFoundError
from store.tables import ApiKey
from store.tenants import suspend_tenant
from tests.store.queues import add_tenant

if TYPE_CHECKING:
    from store.database.connection import Database


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

    def test_of_a_suspended_tenant_say_so(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            _, secret = create_key(session, tenant)
            suspend_tenant(session, tenant)
        with database.read() as session:
            caller = authenticate(session, secret)
        assert caller is not None
        assert caller.is_suspended


class TestExpiry:
    def test_ends_a_key_by_itself(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            end = database_now(session) + timedelta(hours=1)
            key, secret = create_key(session, tenant, expires_at=end)
            assert key.expires_at == end
        with database.read() as session:
            assert authenticate(session, secret) is not None
        with database.write() as session:
            session.execute(
                sa.update(ApiKey).values(expires_at=database_now(session) - timedelta(seconds=1))
            )
        with database.read() as session:
            assert authenticate(session, secret) is None
            assert len(list_keys(session, tenant, after=None, limit=9).rows) == 1

    def test_in_the_past_is_refused(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            past = database_now(session) - timedelta(seconds=1)
            with pytest.raises(KeyInvalidError, match="is past"):
                create_key(session, tenant, expires_at=past)


class TestReplace:
    def test_ends_the_old_one_at_once_or_after_a_grace(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            (first, old), (second, other) = (
                create_key(session, tenant, name=name) for name in ("ci", "laptop")
            )
            new, secret = replace_key(session, first.id, owner_id=tenant, grace=timedelta())
            replace_key(session, second.id, owner_id=tenant, grace=timedelta(hours=1))
        assert (new.name, new.tenant_id) == ("ci", tenant)
        with database.read() as session:
            valid = [authenticate(session, each) is not None for each in (old, other, secret)]
        assert valid == [False, True, True]

    def test_never_prolongs_a_key(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            end = database_now(session) + timedelta(minutes=1)
            key, _ = create_key(session, tenant, expires_at=end)
            replace_key(session, key.id, owner_id=tenant, grace=timedelta(hours=1))
            assert key.expires_at == end

    def test_lasts_as_long_and_longer_only_if_an_administrator_wants_it(self, database: Database):
        tenant, day = add_tenant(database, "a"), timedelta(days=1)
        with database.write() as session:
            now = database_now(session)
            keys = [create_key(session, tenant, expires_at=now + day)[0] for _ in range(4)]
            choices = [(tenant, None), (None, None), (tenant, now + day / 2), (None, now + 9 * day)]
            new = [
                replace_key(session, key.id, owner_id=owner, grace=timedelta(), expires_at=end)[0]
                for key, (owner, end) in zip(keys, choices, strict=True)
            ]
            ends = [key.expires_at - now for key in new]
            assert ends[2:] == [day / 2, 9 * day]
            assert all(timedelta() <= end - day < timedelta(minutes=1) for end in ends[:2])
            key, _ = create_key(session, tenant, expires_at=now + day)
            choice = {"owner_id": tenant, "grace": timedelta(), "expires_at": now + 2 * day}
            with pytest.raises(KeyInvalidError, match="or earlier") as caught:
                replace_key(session, key.id, **choice)
            assert caught.value.param == "expires_at"

    def test_of_another_tenant_is_not_there(self, database: Database):
        tenant, other = add_tenant(database, "a"), add_tenant(database, "b")
        with database.write() as session:
            key, _ = create_key(session, tenant)
            with pytest.raises(NotFoundError):
                replace_key(session, key.id, owner_id=other, grace=timedelta())
            assert replace_key(session, key.id, owner_id=None, grace=timedelta())

    def test_of_a_revoked_one_is_refused(self, database: Database):
        tenant = add_tenant(database, "a")
        with database.write() as session:
            key, _ = create_key(session, tenant)
            revoke_key(session, key.id)
            session.flush()
            with pytest.raises(KeyInvalidError, match="revoked or expired"):
                replace_key(session, key.id, owner_id=tenant, grace=timedelta())
