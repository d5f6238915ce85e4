"""store.tenants: names, quotas and suspension."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from store.errors import ConflictError, NotFoundError, TenantInvalidError
from store.storage import Blob
from store.storage.space import used_bytes
from store.tenants import (
    OwnQuotas,
    Quotas,
    create_tenant,
    ensure_tenant,
    get_tenant,
    list_tenants,
    normal_name,
    resume_tenant,
    suspend_tenant,
)
from tests.store.queues import add_job, add_split, add_tenant, claim

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


class TestNames:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("search", "search"),
            ("  search \t team ", "search team"),
            ("\uff53earch", "search"),  # full width
            ("re\u0301sume\u0301", "résumé"),  # combining accents
            ("a\u00a0b", "a b"),  # a space that does not break
            ("search\r\nteam\n", "search team"),
            ("数据", "数据"),
        ],
    )
    def test_have_one_form_and_are_unique_in_it(self, database: Database, given: str, kept: str):
        with database.write() as session:
            assert create_tenant(session, given).name == kept
        with database.write() as session, pytest.raises(ConflictError, match="already exists"):
            create_tenant(session, kept)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("", "1 to 128 characters"),
            (" \u3000 ", "1 to 128 characters"),
            ("x" * 129, "1 to 128 characters"),
            ("\ufdfa" * 8, "1 to 128 characters"),  # each becomes eighteen
            ("a\u200bb", r"U\+200B"),  # a space without a width
            ("a\u202eb", r"U\+202E"),  # turns the direction of what follows
            ("a\x00b", r"U\+0000"),
            ("a\x1b[31m", r"U\+001B"),
            ("a\ue000", r"U\+E000"),
            *[(f"a{line}b", rf"U\+{ord(line):04X}") for line in "\u2028\u2029\x0b\x0c\x1c\x1f\x85"],
            ("a\u2028", r"U\+2028"),
            ("a\ufffcb", r"U\+FFFC"),  # stands for an object, such as a picture
            ("a\ufffdb", r"U\+FFFD"),  # stands for bytes that are no text
        ],
    )
    def test_that_hide_something_are_refused(self, name: str, told: str):
        with pytest.raises(TenantInvalidError, match=told):
            normal_name(name)

    @pytest.mark.parametrize(
        "blank",
        [
            *("\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"),
            *("\u180b", "\u180e", "\u180f", "\ufe00", "\ufe0f", "\U000e0100", "\U000e01ef"),
            *("\u00ad", "\u200d", "\u2065", "\ufeff", "\ufff0", "\U0001d173", "\U000e0fff"),
        ],
        ids=lambda blank: f"U+{ord(blank):04X}",
    )
    def test_with_a_letter_mark_or_symbol_that_shows_nothing_are_refused(self, blank: str):
        with pytest.raises(TenantInvalidError, match="cannot be seen"):
            normal_name(f"acme{blank}corp")

    @pytest.mark.parametrize("name", ["\u1100\u1161", "\u28ff", "a\u0301", "\u17b6", "\ufe10"])
    def test_of_their_visible_neighbours_are_kept(self, name: str):
        assert normal_name(name)


class TestSuspension:
    def test_leaves_queued_jobs_waiting(self, database: Database):
        tenant, other = add_tenant(database, "a"), add_tenant(database, "b")
        first, second = add_job(database, tenant), add_job(database, other)
        with database.write() as session:
            assert suspend_tenant(session, tenant).suspended_at is not None
        claimed = claim(database)
        assert claimed is not None
        assert claimed.id == second
        assert claim(database) is None
        with database.write() as session:
            resume_tenant(session, tenant)
        claimed = claim(database)
        assert claimed is not None
        assert claimed.id == first

    def test_of_an_unknown_tenant_is_refused(self, database: Database):
        for change in (suspend_tenant, resume_tenant):
            with database.write() as session, pytest.raises(NotFoundError):
                change(session, "ten_none")


class TestStoredBytes:
    def test_are_those_of_this_tenant(self, database: Database):
        tenants = [add_tenant(database, name) for name in "ab"]
        for tenant, size in zip((*tenants, tenants[0]), (10, 200, 3), strict=True):
            add_split(database, tenant, Blob(sha256="0" * 64, bytes=size))
        with database.read() as session:
            assert [used_bytes(session, tenant) for tenant in tenants] == [13, 200]
