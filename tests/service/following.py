"""Streams that a test follows itself, on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from store.jobs import cancel
from store.tables import JobEvent

if TYPE_CHECKING:
    from service.jobs.tailer import ProgressSeen
    from store.database import Database

SECONDS = 20.0  # no test waits longer for what should come at once


def in_time(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(SECONDS):
            return await work

    return asyncio.run(bounded())


async def numbers(seen: AsyncGenerator[JobEvent | ProgressSeen, None]) -> list[int]:
    async with aclosing(seen) as items:
        return [item.number async for item in items if isinstance(item, JobEvent)]


def finish(database: Database, tenant: str, job_id: str) -> None:
    with database.write() as session:
        cancel(session, tenant, job_id)
