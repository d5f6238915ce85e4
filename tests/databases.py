"""Fixtures for tests on a database: SQLite in a file, and Postgres where it runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database.connection import Database
from store.tables import Base

POSTGRES = os.environ.get("HIFI_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@contextmanager
def fresh_postgres() -> Iterator[str]:
    """Create an empty Postgres database and drop it afterwards."""
    server = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"hifi_test_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Create a Postgres database for this run and drop it afterwards."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(fresh_postgres())
        except sa.exc.OperationalError as error:
            if os.environ.get("HIFI_REQUIRE_SERVICES") == "1":
                raise
            pytest.skip(f"no Postgres at {POSTGRES}: {error.orig}")
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, once per kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hifi.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Yield a database with all tables and no rows."""
    database = Database(database_url)
    Base.metadata.drop_all(database.engine)
    Base.metadata.create_all(database.engine)
    yield database
    database.close()
