"""Report an unreachable database in one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from store.database.connection import OUTAGES
from store.errors import StoreError


class DatabaseAwayError(StoreError):
    """The database does not answer, or cannot be opened."""

    code = "database_away"


@contextmanager
def outages_in_one_line() -> Iterator[None]:
    """Convert the errors of an unreachable database to one error that says what to do.

    Raises:
        DatabaseAwayError: the database is unreachable.
    """
    try:
        yield
    except OUTAGES as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise DatabaseAwayError(
            f"the database cannot be reached ({reason}): is it running, is HIFI_DATABASE_URL its "
            "address, and does a database of that name exist? For Postgres, `createdb` creates one"
        ) from error
