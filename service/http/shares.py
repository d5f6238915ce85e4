"""Shares: limit how much of a gateway's scarce resources one tenant may hold at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from store.errors import ProblemError

_REFUSED_SECONDS = 1.0  # after which the inference process tells callers to try again


class Share:
    """The limit of one resource that every tenant may hold in this process.

    Used on one event loop.

    Args:
        most: the limit per tenant.
        code: of the problem when the limit is reached.
        what: the resource, in words.
    """

    def __init__(self, most: int, *, code: str, what: str) -> None:
        self._most = most
        self._code = code
        self._what = what
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, tenant_id: str) -> Iterator[None]:
        """Hold one during a block.

        Raises:
            ProblemError: 429, the tenant has reached its limit.
        """
        if self._held[tenant_id] >= self._most:
            raise ProblemError(
                self._code,
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"you have {self._most} open {self._what} here, which is the limit; close "
                "one, or retry later",
            )
        self._held[tenant_id] += 1
        try:
            yield
        finally:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:  # forget tenants that hold nothing
                del self._held[tenant_id]


class OneEach:
    """A turn that one request of each tenant has at a time; the others of the tenant wait.

    Used on one event loop.
    """

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, tenant_id: str) -> AsyncIterator[None]:
        """Hold the tenant's turn during a block."""
        lock = self._locks.setdefault(tenant_id, asyncio.Lock())
        self._users[tenant_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[tenant_id] -= 1
            if not self._users[tenant_id]:
                del self._users[tenant_id], self._locks[tenant_id]


@dataclass(frozen=True)
class _LateRefusal:
    until: float
    size: int
    code: str
    detail: str
    headers: Mapping[str, str]


class LateRefusals:
    """Remembers for a second which requests were refused only after they had been read.

    Those that are as large are then refused at once: to read them would take the time of others.

    Args:
        clock: in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[Hashable, _LateRefusal] = {}

    @contextmanager
    def hold(self, key: Hashable, *, size: int) -> Iterator[None]:
        """Note a refusal during a block, for lack of room.

        Args:
            key: requests with the same key compete for the same room.
            size: of the request, in bytes.

        Raises:
            ProblemError: 429, as the last one with this key that was not larger.
        """
        now = self._clock()
        self._refused = {name: last for name, last in self._refused.items() if last.until > now}
        last = self._refused.get(key)
        if last is not None and size >= last.size:
            raise ProblemError(  # another one, whose traceback keeps no request in memory
                last.code,
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=last.detail,
                headers=last.headers,
            )
        try:
            yield
        except ProblemError as problem:
            if problem.status == HTTPStatus.TOO_MANY_REQUESTS:
                self._note(key, size, problem)
            raise

    def _note(self, key: Hashable, size: int, problem: ProblemError) -> None:
        now = self._clock()
        last = self._refused.get(key)
        if last is not None and last.until > now:
            size = min(size, last.size)
        self._refused[key] = _LateRefusal(
            now + _REFUSED_SECONDS, size, problem.code, problem.detail, problem.headers
        )


class Shares:
    """The shares of a tenant in a gateway process.

    Attributes:
        streams: of events; each is an open connection for as long as its job takes.
        uploads: each may fill the disk up to the limit of an upload.
        downloads: of stored files; each holds a mebibyte of its file in memory.
        merges: each uses one of about thirty connections to the inference process, and the memory
            of a model there.
        large_bodies: JSON bodies that are being received and held in memory.
        predictions: requests; each uses one of about a hundred connections.
        late_refusals: of requests for predictions, for which the inference process has no room.
        large_predictions: requests that may be larger than a mebibyte, one at a time: each uses
            several times its size in memory. The others wait, their bodies unread.
        planning: the work on a request for predictions: it takes the interpreter, and every request
            of this process waits for each thread that does.
    """

    def __init__(self) -> None:
        self.streams = Share(100, code="too_many_streams", what="streams of events")
        self.uploads = Share(8, code="too_many_uploads", what="uploads")
        self.downloads = Share(16, code="too_many_downloads", what="downloads")
        self.merges = Share(4, code="too_many_merges", what="downloads of merged models")
        self.large_bodies = Share(16, code="too_many_requests", what="large request bodies")
        what = "requests for predictions"
        self.predictions = Share(16, code="too_many_predictions", what=what)
        self.late_refusals = LateRefusals()
        self.large_predictions = OneEach()
        self.planning = OneEach()
