"""Fixtures for tests on a database: SQLite in a file, and Postgres where it runs."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from store.database.connection import Database
from store.tables import Base

POSTGRES = os.environ.get("HIFI_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@contextmanager
def fresh_postgres() -> Iterator[str]:
    """Create an empty Postgres database; yield its URL; drop it afterwards."""
    server = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg")
    name = f"hifi_test_{secrets.token_hex(6)}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _postgres_for_tests() -> Iterator[str]:
    try:
        with fresh_postgres() as url:
            # No test cuts its power, and a commit that waits for the disk takes ten times as long.
            name = sa.make_url(url).database
            _execute(sa.make_url(url), f"ALTER DATABASE {name} SET synchronous_commit = off")
            yield url
    except sa.exc.OperationalError as error:
        if os.environ.get("HIFI_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"no Postgres at {POSTGRES}: {error.orig}")


def _execute(url: sa.URL, statement: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Return the URL of a Postgres database of this run, to which a test may apply migrations."""
    with _postgres_for_tests() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_tables() -> Iterator[str]:
    """Return the URL of another, whose tables the tests share."""
    with _postgres_for_tests() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database, once per kind; a test before may have left tables in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hifi.db"
    url: str = request.getfixturevalue("postgres_tables")
    return url


def make_tables(database: Database) -> None:
    """Create all tables, as of this version, in less time than the migrations take."""
    Base.metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        script = ScriptDirectory(str(files("migrations")))
        MigrationContext.configure(connection).stamp(script, "head")


def empty_tables(database: Database) -> None:
    """Delete the rows of all tables."""
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # no trigger that keeps the audit trail
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with all tables, to copy."""
    file = tmp_path_factory.mktemp("databases") / "tables.db"
    database = Database(f"sqlite:///{file}")
    make_tables(database)
    database.close()
    return file


@pytest.fixture
def database(database_url: str, sqlite_tables: Path, tmp_path: Path) -> Iterator[Database]:
    """Yield a database with all tables and no rows."""
    if database_url.startswith("sqlite"):
        shutil.copyfile(sqlite_tables, tmp_path / "hifi.db")
    database = Database(database_url)
    if not sa.inspect(database.engine).has_table("jobs"):
        make_tables(database)
    else:  # making the tables again would take forty times as long
        empty_tables(database)
    yield database
    database.close()
