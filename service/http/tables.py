"""Refuse requests while the tables are another version's: somebody migrated them meanwhile."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from store.database.connection import OUTAGES
from store.database.schema import check
from store.errors import SchemaError

if TYPE_CHECKING:
    from store.database.connection import Database

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_MARK = "answers_without_tables"
_VALID_SECONDS = 1.0  # between two checks, however many requests there are
_WAIT_SECONDS = 0.5  # for a check; a database that hangs must not stop requests that do not need it


class TablesWatch:
    """Knows whether the tables are still those of this version.

    Args:
        database: with the tables, which were of this version at the start.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limiter = CapacityLimiter(1)
        self._checking: asyncio.Future[None] | None = None
        self._checked_at = -math.inf
        self._problem: str | None = None

    async def admit(self) -> None:
        """Check the tables, if the last check is too old.

        Raises:
            SchemaError: they are not of this version.
        """
        if time.monotonic() - self._checked_at >= _VALID_SECONDS:
            await self._check()
        if self._problem is not None:
            raise SchemaError(self._problem)

    async def admit_after_error(self) -> None:
        """Check the tables now: a query has failed, perhaps because they have just been changed.

        Raises:
            SchemaError: they are not of this version.
        """
        await self._check()  # the one under way may be older than the change
        await self._check()
        if self._problem is not None:
            raise SchemaError(self._problem)

    async def close(self) -> None:
        """Stop waiting for an answer."""
        if self._checking is not None:
            self._checking.cancel()

    async def _check(self) -> None:
        """Wait for the check under way, or start one; not for long."""
        if self._checking is None:
            self._checking = asyncio.ensure_future(self._look())
        await asyncio.wait([self._checking], timeout=_WAIT_SECONDS)

    async def _look(self) -> None:
        try:
            await to_thread.run_sync(
                check, self._database, limiter=self._limiter, abandon_on_cancel=True
            )
        except SchemaError as error:
            self._problem = str(error)
        except (DBAPIError, *OUTAGES):
            return  # whoever queries the database reports it
        else:
            self._problem = None
        finally:
            self._checked_at = time.monotonic()
            self._checking = None


def without_tables(endpoint: _Endpoint) -> _Endpoint:
    """Mark an endpoint that answers whatever the state of the tables."""
    setattr(endpoint, _MARK, True)
    return endpoint


async def admit_tables(request: Request) -> None:
    """Check the tables, except for an endpoint that answers without them.

    Raises:
        SchemaError: 503 ``tables_version``.
    """
    if not getattr(request.scope["endpoint"], _MARK, False):
        await request.state.tables.admit()
