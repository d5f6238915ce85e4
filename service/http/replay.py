"""``Idempotency-Key``: run a repeated request once, and return the same answer to each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import structlog
from anyio import to_thread
from starlette.responses import Response

from store.database.connection import OUTAGES
from store.errors import RETRY_SECONDS, ProblemError, RequestTakenOverError
from store.idempotency import RequestKey, begin, finish, forget

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from sqlalchemy.orm import Session

    from store.database.connection import Database

_WAIT_SECONDS = 30.0
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
Work = Callable[[Keep], Answer]


@dataclass(frozen=True, kw_only=True)
class Once:
    """A request that runs at most once per idempotency key.

    Attributes:
        key: identity of the request; None without an idempotency key: then it always runs.
        request_sha256: of the canonical body.
        lock_seconds: how long the work may take before a repeated request takes over.
        limiter: limits how many such requests run at once; None: only the number of threads.
    """

    database: Database
    key: RequestKey | None
    request_sha256: str
    lock_seconds: float
    limiter: CapacityLimiter | None = None

    async def answer(self, work: Work) -> Response:
        """Run the work, or wait for a running request with the same key and return its answer.

        Args:
            work: runs in a thread. It passes its answer to its argument, inside the transaction
                that must happen once, and returns it.

        Raises:
            IdempotencyKeyReusedError: the key was used with another body.
            ProblemError: 409 ``idempotency_in_progress``, the other request takes too long.
        """
        if self.key is None:
            answer = await to_thread.run_sync(work, _keep_nothing, limiter=self.limiter)
            return answer.respond()
        end = time.monotonic() + _WAIT_SECONDS
        pause = _FIRST_POLL_SECONDS
        while time.monotonic() < end:
            found = await to_thread.run_sync(self._begin, self.key)
            if found == "started":
                done = await to_thread.run_sync(self._do, self.key, work, limiter=self.limiter)
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

    def _do(self, key: RequestKey, work: Work) -> Answer | None:
        """Run the work; return None if a repeated request took over meanwhile."""
        try:
            return work(lambda session, answer: finish(session, key, vars(answer)))
        except RequestTakenOverError:
            return None
        except BaseException:
            self._forget(key)
            raise

    def _forget(self, key: RequestKey) -> None:
        try:
            with self.database.write() as session:
                forget(session, key)
        except OUTAGES:
            _log.warning("idempotency_key_stays_locked", seconds=self.lock_seconds)


def _keep_nothing(session: Session, answer: Answer) -> None:
    """Do nothing: without a key no answer is stored."""
