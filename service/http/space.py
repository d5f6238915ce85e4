"""Reserve a tenant's space for an upload before its first byte is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
from anyio import CancelScope, CapacityLimiter, move_on_after, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from store.database.connection import OUTAGES
from store.idempotency import is_known
from store.storage.space import EXPIRY, end, extend, renew, reserve, reserve_for_repeat
from store.storage.unnamed import remove_unnamed

if TYPE_CHECKING:
    from starlette.types import Message, Receive

    from store.database.connection import Database
    from store.idempotency import RequestKey
    from store.settings import Settings
    from store.storage import ArtifactStorage

_RENEWAL_SECONDS = EXPIRY.total_seconds() / 5
# A blob that hangs takes a thread for half a minute; each tenant uses one at most.
_REMOVALS = 8
_FREE_SECONDS = 2.0
_STEP_BYTES = 4 << 20  # reserved at a time for a body without Content-Length
_log = structlog.get_logger(__name__)


class Space:
    """The reservations of a gateway's uploads, which are renewed until they end.

    Those of a gateway that dies expire, so that its tenants get their space back.

    Args:
        database, storage: of this gateway.
        settings: of the server.
    """

    def __init__(self, database: Database, storage: ArtifactStorage, *, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._max_bytes = settings.tenant_max_bytes
        self._max_upload_bytes = settings.max_upload_bytes
        self._held: set[str] = set()
        self._freeing: dict[str, asyncio.Task[None]] = {}
        self._threads = CapacityLimiter(_REMOVALS)
        self._renewing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(
        self, tenant_id: str, *, key: RequestKey | None, declared: int | None
    ) -> AsyncIterator[UploadSpace]:
        """Reserve space during a block; what was stored and is not named then is removed.

        Args:
            tenant_id: the owner.
            key: the upload's idempotency key, if any: a repeated upload may exceed the quota.
            declared: the body's size, from its headers; None if they do not say.

        Raises:
            SpaceExceededError: the tenant's quota has no room for the upload.
        """
        reserved = await run_in_threadpool(self._reserve, tenant_id, key, declared)
        self._held.add(reserved.reservation_id)
        self._renewing = self._renewing or asyncio.create_task(self._renew())
        is_done = False
        try:
            yield reserved
            is_done = True
        finally:
            self._held.discard(reserved.reservation_id)
            with CancelScope(shield=True):
                await run_in_threadpool(self._end, reserved.reservation_id)
                if not is_done:
                    await self.free(tenant_id)

    async def free(self, tenant_id: str) -> None:
        """Remove a tenant's unnamed blobs; return when that is done, or takes too long.

        One that cannot be removed now is removed by a worker later.
        """
        with move_on_after(_FREE_SECONDS):
            while tenant_id in self._freeing:  # it may have looked before the caller's commit
                await asyncio.wait([self._freeing[tenant_id]])
            task = asyncio.create_task(self._remove(tenant_id))
            self._freeing[tenant_id] = task
            task.add_done_callback(lambda _: self._freeing.pop(tenant_id))
            await asyncio.wait([task])

    async def _remove(self, tenant_id: str) -> None:
        remove = partial(remove_unnamed, self._database, self._storage, tenant_id=tenant_id)
        try:
            await to_thread.run_sync(remove, limiter=self._threads, abandon_on_cancel=True)
        except OUTAGES as error:
            _log.warning("space_freed_later", reason=type(error).__name__)

    async def close(self) -> None:
        """Stop renewing and removing."""
        tasks = [*self._freeing.values(), *filter(None, [self._renewing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reserve(self, tenant_id: str, key: RequestKey | None, declared: int | None) -> UploadSpace:
        with self._database.write() as session:
            is_repeat = key is not None and is_known(session, key)
            if is_repeat:
                size = self._max_upload_bytes if declared is None else declared
                identifier = reserve_for_repeat(
                    session, tenant_id, size=size, max_bytes=self._max_bytes
                )
            else:
                size = 1 if declared is None else declared
                identifier = reserve(session, tenant_id, size=declared, max_bytes=self._max_bytes)
        return UploadSpace(
            self._database, identifier, tenant_id=tenant_id, size=size, max_bytes=self._max_bytes
        )

    def _end(self, reservation_id: str) -> None:
        try:
            with self._database.write() as session:
                end(session, reservation_id)
        except OUTAGES as error:
            _log.warning("reservation_expires", reason=type(error).__name__)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            try:
                await run_in_threadpool(renew, self._database, list(self._held))
            except SQLAlchemyError as error:  # also of tables that are not ours for a while
                _log.warning("reservations_not_renewed", reason=type(error).__name__)


class UploadSpace:
    """The space reserved for one upload, which grows with a body of unknown size.

    Attributes:
        reservation_id: in the tables.
    """

    def __init__(
        self,
        database: Database,
        reservation_id: str,
        *,
        tenant_id: str,
        size: int,
        max_bytes: int,
    ) -> None:
        self.reservation_id = reservation_id
        self._tenant_id = tenant_id
        self._database = database
        self._size = size
        self._max_bytes = max_bytes

    def metered(self, request: Request) -> Request:
        """Return the request; reading more of its body than is reserved reserves more first.

        Reading raises SpaceExceededError if the tenant's quota has no room for it.
        """
        return Request(request.scope, self._meter(request.receive))

    def _meter(self, receive: Receive) -> Receive:
        received = 0

        async def metered() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._size:
                self._size = await run_in_threadpool(self._extend, received)
            return message

        return metered

    def _extend(self, size: int) -> int:
        with self._database.write() as session:
            return extend(
                session,
                self.reservation_id,
                tenant_id=self._tenant_id,
                size=size,
                spare=_STEP_BYTES,
                max_bytes=self._max_bytes,
            )
