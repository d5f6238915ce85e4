"""Report an unreachable database in one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from store.database.connection import OUTAGES, Database
from store.database.schema import check
from store.errors import StoreError


class DatabaseAwayError(StoreError):
    """The database does not answer, or cannot be opened."""

    code = "database_away"


@contextmanager
def outages_in_one_line() -> Iterator[None]:
    """Convert the errors of an unreachable database to a DatabaseAwayError that says what to do."""
    try:
        yield
    except OUTAGES as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise DatabaseAwayError(
            f"the database cannot be reached ({reason}): is it running, is HIFI_DATABASE_URL its "
            "address, and does a database of that name exist? For Postgres, `createdb` creates one"
        ) from error


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """Open a database for a block, and check its tables.

    Raises:
        SchemaError: the tables are not of this version.
        DatabaseAwayError: the database is unreachable.
    """
    with outages_in_one_line(), closing(Database(url, pool_size=1)) as database:
        check(database)
        yield database
