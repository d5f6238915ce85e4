"""The version of the tables: upgrade, downgrade, and the check at the start of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from store.database.connection import Database, is_sqlite
from store.errors import SchemaError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

_LOCK = 0x4869466A  # Postgres's advisory lock for this purpose


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the tables to a revision, by default the newest; rows are kept.

    Only one process does this at a time; a process that waited for another finds nothing to do.

    Raises:
        SchemaError: the tables' current revision has no path to the target.
    """
    with _migration(url) as config:
        command.upgrade(config, revision)


def downgrade(url: str, revision: str) -> None:
    """Downgrade the tables to an older revision; ``base`` removes all tables.

    Raises:
        SchemaError: the tables' current revision has no path to the target.
    """
    with _migration(url) as config:
        command.downgrade(config, revision)


def check(database: Database) -> None:
    """Check that the tables have the revision of this version.

    Raises:
        SchemaError: they do not; the message says what to do.
    """
    with database.read() as session:
        found = MigrationContext.configure(session.connection()).get_current_revision()
    if found != _head():
        state = "has no tables yet" if found is None else f"is at revision {found}"
        raise SchemaError(
            f"the database {state}, but this version needs {_head()}: run `hifi migrate`"
        )


@contextmanager
def _migration(url: str) -> Iterator[Config]:
    """Open the exclusive transaction that changes the tables; an error rolls it back."""
    database = Database(url)
    # SQLite changes a table by creating a new one and dropping the old one, which would violate
    # foreign keys.
    if database.engine.dialect.name == "sqlite":
        sa.event.listen(database.engine, "connect", _ignore_foreign_keys)
    try:
        with database.write() as session, _config() as config:
            connection = session.connection()
            if not is_sqlite(session):
                session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            config.attributes["connection"] = connection
            yield config
            if is_sqlite(session) and session.execute(sa.text("PRAGMA foreign_key_check")).all():
                raise SchemaError("some rows violate foreign keys; nothing was changed")
    except CommandError as error:
        raise SchemaError(
            f"cannot change the tables: {error}; is this version of HiFi older than the tables?"
        ) from error
    finally:
        database.close()


@contextmanager
def _config() -> Iterator[Config]:
    with as_file(files("migrations")) as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        yield config


@cache
def _head() -> str | None:
    with _config() as config:
        return ScriptDirectory.from_config(config).get_current_head()


def _ignore_foreign_keys(connection: DBAPIConnection, _record: object) -> None:
    connection.cursor().execute("PRAGMA foreign_keys = OFF")
