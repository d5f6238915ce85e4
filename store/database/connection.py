"""Access to the database, SQLite or Postgres, with read and write transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.tables import Base, UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

# Errors of a database that is unreachable, busy for too long, or (InternalError) read-only during a
# failover: the same call may succeed later.
OUTAGES = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    sa.exc.TimeoutError,
)
# The time by the database's clock, to select together with other columns.
CLOCK: sa.Function[datetime] = sa.func.clock_timestamp(type_=UtcDateTime)
_NOW = sa.select(CLOCK)
_WRITES = "hifi_writes"
_BUSY_SECONDS = 30.0
_IDLE_SINCE = "hifi_idle_since"
_IDLE_SECONDS = 1.0
# A server that disappears without closing its connections is noticed in seconds, not by TCP's
# timeout.
_POSTGRES_OPTIONS = {
    "connect_timeout": "5",
    "tcp_user_timeout": "15000",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "2",
}


class Database:
    """One database; all transactions on it begin here.

    A write transaction takes SQLite's write lock at once (``BEGIN IMMEDIATE``): a transaction that
    reads first and locks later fails if another one wrote in between. On Postgres both kinds are
    plain READ COMMITTED transactions, and callers lock rows where needed.

    Args:
        url: an SQLAlchemy URL; ``postgresql://`` means the psycopg driver. Options in its query
            override our timeouts.
        pool_size: number of connections to keep open.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        parsed = _completed(sa.make_url(url))
        on_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}} if on_sqlite else {}
        self.engine = sa.create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=pool_size,
            hide_parameters=True,  # errors are logged; parameters may hold rows and key hashes
            **options,
        )
        if on_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "checkin", _note_idle)
            sa.event.listen(self.engine, "checkout", _ping_idle)
        self._writer = self.engine.execution_options(**{_WRITES: True})
        # Each query of a READ COMMITTED transaction sees everything committed before it. A
        # transaction that only reads therefore needs no BEGIN and ROLLBACK, and is three times as
        # fast without them.
        self._reader = (
            self.engine
            if on_sqlite
            else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that only reads; it is rolled back at the end."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that writes: committed at the end, rolled back on an error."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


def _completed(url: URL) -> URL:
    if url.get_backend_name() != "postgresql":
        return url
    missing = {name: value for name, value in _POSTGRES_OPTIONS.items() if name not in url.query}
    driver = "postgresql+psycopg" if url.drivername == "postgresql" else url.drivername
    return url.set(drivername=driver).update_query_dict(missing)


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(f"{type(connection).__name__} is not an sqlite3 connection")
    connection.isolation_level = None  # this module begins transactions itself
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a committed job survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    # Postgres has this function; with SQLite all processes share one machine's clock.
    connection.create_function("clock_timestamp", 0, lambda: f"{datetime.now(UTC):%F %T.%f}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _note_idle(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info[_IDLE_SINCE] = time.monotonic()


def _ping_idle(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Check that an idle connection is still alive; otherwise the pool opens a new one.

    SQLAlchemy's ``pool_pre_ping`` checks before every transaction, which costs a tenth of a claim.
    """
    if time.monotonic() - record.info.get(_IDLE_SINCE, time.monotonic()) < _IDLE_SECONDS:
        return
    try:
        connection.cursor().execute("SELECT 1")
        connection.rollback()
    except psycopg.OperationalError as error:
        raise sa.exc.DisconnectionError from error


def is_sqlite(session: Session) -> bool:
    """Return whether a transaction is on SQLite; otherwise it is on Postgres."""
    return session.get_bind().dialect.name == "sqlite"


def insert_into(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that can have ``ON CONFLICT``: SQLAlchemy offers it by dialect only."""
    return sqlite.insert(table) if is_sqlite(session) else postgresql.insert(table)


def database_now(session: Session) -> datetime:
    """Return the time by the database's clock, which all processes share.

    On Postgres the clock advances within a transaction, so time spent waiting for a lock counts.
    """
    return session.execute(_NOW).scalar_one()
