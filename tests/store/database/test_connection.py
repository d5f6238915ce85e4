"""store.database.connection: transactions keep their promises, lost connections are replaced."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database import connection as module
from store.database.connection import OUTAGES, Database, database_now
from store.tables import Tenant
from store.tenants import create_tenant


class TestClock:
    def test_is_in_utc_and_goes_on_within_a_transaction(self, database: Database):
        with database.read() as session:
            first, second = database_now(session), database_now(session)
        assert first.tzinfo is UTC
        assert first < second
        assert abs(second - datetime.now(UTC)) < timedelta(seconds=5)


class TestWrite:
    def test_is_undone_by_an_error(self, database: Database):
        def fail() -> None:
            with database.write() as session:
                create_tenant(session, "a")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with database.read() as session:
            assert session.scalars(sa.select(Tenant)).all() == []

    def test_what_is_read_first_is_still_so_when_it_is_written(self, database: Database):
        """Two that read, think and write come one after the other."""
        with database.write() as session:
            tenant_id = create_tenant(session, "a").id

        def add_one() -> None:
            for _ in range(20):
                with database.write() as session:
                    query = sa.select(Tenant).where(Tenant.id == tenant_id).with_for_update()
                    tenant = session.scalars(query).one()
                    tenant.max_queued = (tenant.max_queued or 0) + 1

        threads = [threading.Thread(target=add_one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.read() as session:
            assert session.get_one(Tenant, tenant_id).max_queued == 80


class TestPostgres:
    def test_is_given_up_on_in_seconds_unless_the_address_says_otherwise(self, tmp_path: Path):
        def options(url: str) -> dict[str, str]:
            return dict(Database(url).engine.url.query)

        usual = options("postgresql://host/name")
        assert usual["connect_timeout"] == "5"
        assert {"tcp_user_timeout", "keepalives_idle"} < set(usual)
        own = options("postgresql+psycopg://host/name?connect_timeout=60&sslmode=require")
        assert own == {**usual, "connect_timeout": "60", "sslmode": "require"}
        assert options(f"sqlite:///{tmp_path}/x.db") == {}


class TestErrors:
    def test_tell_no_values(self, database: Database):
        with database.write() as session:
            create_tenant(session, "a")
        with pytest.raises(sa.exc.IntegrityError) as caught, database.write() as session:
            session.add(Tenant(id="ten_x", name="a", created_at=datetime.now(UTC), is_admin=True))
        assert "ten_x" not in str(caught.value)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
class TestLostConnections:
    @staticmethod
    def terminate_others(database: Database) -> None:
        """Do to the pool's connections what a restart of the server does."""
        others = Database(database.engine.url.render_as_string(hide_password=False))
        with others.read() as session:
            session.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        others.close()

    @pytest.mark.parametrize("transaction", ["read", "write"])
    def test_that_have_rested_are_replaced(self, database, monkeypatch, transaction: str):
        monkeypatch.setattr(module, "_IDLE_SECONDS", 0)
        for _ in range(2):
            with getattr(database, transaction)() as session:
                database_now(session)
            self.terminate_others(database)

    def test_in_use_are_an_outage_once(self, database):
        with database.read() as session:
            database_now(session)
        self.terminate_others(database)
        with pytest.raises(OUTAGES), database.read() as session:
            database_now(session)
        with database.read() as session:
            database_now(session)
