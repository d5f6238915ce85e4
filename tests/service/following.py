"""Helpers to follow event streams on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from store.jobs.actions import cancel
from store.tables import JobEvent
from tests.waiting import patience

if TYPE_CHECKING:
    from service.jobs.tailer import ProgressSeen
    from store.database.connection import Database


def in_time(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(patience()):
            return await work

    return asyncio.run(bounded())


async def numbers(seen: AsyncGenerator[JobEvent | ProgressSeen, None]) -> list[int]:
    async with aclosing(seen) as items:
        return [item.number async for item in items if isinstance(item, JobEvent)]


async def begin(
    seen: AsyncGenerator[JobEvent | ProgressSeen, None],
) -> asyncio.Task[list[int]]:
    """Follow a stream in the background; return once it has yielded something."""
    has_begun = asyncio.Event()

    async def follow() -> list[int]:
        got = []
        async with aclosing(seen) as items:
            async for item in items:
                has_begun.set()
                if isinstance(item, JobEvent):
                    got.append(item.number)
        return got

    task = asyncio.create_task(follow())
    await has_begun.wait()
    return task


def finish(database: Database, tenant: str, job_id: str) -> None:
    with database.write() as session:
        cancel(session, tenant, job_id)
