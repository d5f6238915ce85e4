"""The database: SQLite or Postgres behind one door, with transactions that keep their promises."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection

_WRITES = "hifi_writes"
_BUSY_SECONDS = 30.0


class Database:
    """One database, and the only maker of transactions on it.

    A write transaction takes SQLite's write lock at once (``BEGIN IMMEDIATE``): one that reads
    first and locks later fails when another wrote in between. On Postgres both kinds are plain
    READ COMMITTED transactions, and rows are locked where that matters.

    Args:
        url: an SQLAlchemy URL; ``postgresql://`` means the psycopg driver.
        pool_size: connections kept open on Postgres.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        parsed = _with_driver(sa.make_url(url))
        on_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = (
            {"connect_args": {"timeout": _BUSY_SECONDS}}
            if on_sqlite
            else {"pool_size": pool_size, "max_overflow": pool_size, "pool_pre_ping": True}
        )
        self.engine = sa.create_engine(parsed, **options)
        if on_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(**{_WRITES: True})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that only reads; it is rolled back at the end."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that writes: committed at the end, rolled back on an error."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(f"{type(connection).__name__} is no connection of sqlite3")
    connection.isolation_level = None  # we begin transactions ourselves
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a committed job survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_sqlite(session: Session) -> bool:
    """Tell whether a transaction is on SQLite; otherwise it is on Postgres."""
    return session.get_bind().dialect.name == "sqlite"


def database_now(session: Session) -> datetime:
    """Tell the time by the database's clock, which all processes share.

    On Postgres it goes on within a transaction, so that time spent waiting for a lock counts.
    """
    if is_sqlite(session):
        text = session.execute(sa.text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')")).scalar_one()
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    now: datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)
