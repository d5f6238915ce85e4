"""store.administration.audit: who did what, in the transaction that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from store.administration.audit import ON_THE_SERVER, Actor, list_audit, record
from store.errors import NotFoundError
from store.tables import AuditEvent

if TYPE_CHECKING:
    from store.database.connection import Database

ADMIN = Actor(tenant_id="ten_admin", key_id="key_1", request_id="req_1")


@pytest.fixture
def events(database: Database) -> list[str]:
    """Record three actions; return their ids, the oldest first."""
    for actor, action, tenant in (
        (ON_THE_SERVER, "tenant.created", "ten_a"),
        (ADMIN, "tenant.created", "ten_b"),
        (ADMIN, "key.revoked", "ten_a"),
    ):
        with database.write() as session:
            record(session, actor, action, tenant_id=tenant, subject_id=tenant, details={"n": 1})
    with database.read() as session:
        return [row.id for row in list_audit(session, after=None, limit=9).rows][::-1]


class TestTrail:
    def test_says_who_did_what_to_what(self, database: Database, events: list[str]):
        with database.read() as session:
            row = session.get(AuditEvent, events[2])
        assert row is not None
        assert (row.actor_tenant_id, row.actor_key_id, row.request_id) == (
            *("ten_admin", "key_1"),
            "req_1",
        )
        assert (row.action, row.tenant_id, row.details) == ("key.revoked", "ten_a", {"n": 1})

    def test_is_listed_by_tenant_and_action(self, database: Database, events: list[str]):
        first, second, third = events
        for filters, found in (
            ({"tenant_id": "ten_a"}, [third, first]),
            ({"action": "tenant.created"}, [second, first]),
            ({"tenant_id": "ten_a", "action": "tenant.created"}, [first]),
            ({"tenant_id": "ten_c"}, []),
        ):
            with database.read() as session:
                page = list_audit(session, **filters, after=None, limit=9)
            assert [row.id for row in page.rows] == found

    def test_has_pages(self, database: Database, events: list[str]):
        with database.read() as session:
            page = list_audit(session, after=events[2], limit=1)
            assert ([row.id for row in page.rows], page.has_more) == ([events[1]], True)
            with pytest.raises(NotFoundError):
                list_audit(session, after="aud_none", limit=1)

    def test_is_not_written_if_the_action_fails(self, database: Database):
        def fail() -> None:
            with database.write() as session:
                record(session, ADMIN, "key.created", tenant_id="ten_a", subject_id="key_1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with database.read() as session:
            assert not list_audit(session, after=None, limit=9).rows
