"""``Idempotency-Key``: run a repeated request once, and return the same answer to each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import structlog
from anyio import CancelScope, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from store.database.connection import OUTAGES
from store.errors import RETRY_SECONDS, ProblemError, RequestTakenOverError
from store.idempotency import RequestKey, begin, extend, finish, forget

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database.connection import Database

# A gateway that was killed extends its locks no longer: a repeated request waits for the lock to
# expire, and then does the work.
_LOCK_SECONDS = 15.0
_EXTENSIONS_PER_LOCK = 4  # so many in a row may fail or be late before the lock expires
_WAIT_SECONDS = 30.0  # longer than a lock
_FIRST_POLL_SECONDS = 0.02
_LAST_POLL_SECONDS = 0.5
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response with a JSON body that can be stored and replayed byte for byte."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def respond(self) -> Response:
        """Return the HTTP response."""
        return Response(
            self.body, status_code=self.status, headers=self.headers, media_type="application/json"
        )


def request_key(key: str | None, *, tenant_id: str, path: str) -> RequestKey | None:
    """Return the identity of a tenant's POST; None without an idempotency key."""
    if key is None:
        return None
    return RequestKey(tenant_id=tenant_id, method="POST", path=path, key=key)


Keep = Callable[["Session", Answer], None]
Work = Callable[[Keep], Awaitable[Answer]]


@dataclass(frozen=True, kw_only=True)
class Once:
    """A request that runs at most once per idempotency key.

    Attributes:
        key: identity of the request; None without an idempotency key: then it always runs.
        request_sha256: of the canonical body.
        lock_seconds: how long this process may stop working before a repeated request takes over.
    """

    database: Database
    key: RequestKey | None
    request_sha256: str
    lock_seconds: float = _LOCK_SECONDS

    async def answer(self, work: Work) -> Response:
        """Run the work, or wait for a running request with the same key and return its answer.

        Args:
            work: passes its answer to its argument, inside the transaction that must happen once,
                and returns it.

        Raises:
            IdempotencyKeyReusedError: the key was used with another body.
            ProblemError: 409 ``idempotency_in_progress``, the other request takes too long.
        """
        if self.key is None:
            return (await work(_keep_nothing)).respond()
        end = time.monotonic() + _WAIT_SECONDS
        pause = _FIRST_POLL_SECONDS
        while time.monotonic() < end:
            found = await to_thread.run_sync(self._begin, self.key)
            if found == "started":
                done = await self._do(self.key, work)
                if done is not None:
                    return done.respond()
            elif found != "running":
                response = Answer(**found).respond()
                response.headers["Idempotent-Replayed"] = "true"
                return response
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LAST_POLL_SECONDS)
        raise ProblemError(
            "idempotency_in_progress",
            status=HTTPStatus.CONFLICT,
            detail="a request with this key is still running; retry later",
            param="Idempotency-Key",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )

    def _begin(self, key: RequestKey) -> Mapping[str, Any] | Literal["started", "running"]:
        with self.database.write() as session:
            return begin(
                session,
                key,
                request_sha256=self.request_sha256,
                lock_seconds=self.lock_seconds,
            )

    async def _do(self, key: RequestKey, work: Work) -> Answer | None:
        """Run the work; return None if a repeated request took over meanwhile."""
        extending = asyncio.create_task(self._extend(key))
        try:
            return await work(lambda session, answer: finish(session, key, vars(answer)))
        except RequestTakenOverError:
            return None
        except BaseException:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._forget, key)
            raise
        finally:
            extending.cancel()

    async def _extend(self, key: RequestKey) -> None:
        """Extend the lock as long as this process works on the request."""
        while True:
            await asyncio.sleep(self.lock_seconds / _EXTENSIONS_PER_LOCK)
            try:
                await to_thread.run_sync(self._lock_again, key)
            except SQLAlchemyError:  # also of tables that are not ours for a while
                _log.warning("idempotency_lock_not_extended", seconds=self.lock_seconds)

    def _lock_again(self, key: RequestKey) -> None:
        with self.database.write() as session:
            extend(session, key, lock_seconds=self.lock_seconds)

    def _forget(self, key: RequestKey) -> None:
        try:
            with self.database.write() as session:
                forget(session, key)
        except OUTAGES:
            _log.warning("idempotency_key_stays_locked", seconds=self.lock_seconds)


def _keep_nothing(session: Session, answer: Answer) -> None:
    """Do nothing: without a key no answer is stored."""
