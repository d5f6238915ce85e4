from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from service.jobs.tailer import ProgressSeen, Tailer
from store.database.connection import Database
from tests.service.following import begin, finish, in_time, numbers
from tests.store.queues import add_job, add_tenant
from tests.waiting import eventually_async


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)


class Shaky(Database):
    """A database that fails while ``error`` is set."""

    error: Exception | None = None

    @contextmanager
    def read(self) -> Iterator[Any]:
        if self.error is not None:
            raise self.error
        with super().read() as session:
            yield session


@pytest.fixture
def shaky(sqlite_url: str) -> Iterator[Shaky]:
    shaky = Shaky(sqlite_url)
    yield shaky
    shaky.close()


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "acme")


@pytest.fixture
def job_id(database: Database, tenant: str) -> str:
    return add_job(database, tenant)


class TestOutage:
    def test_waits_for_an_unavailable_database_and_resumes(
        self, shaky: Shaky, database: Database, tenant: str, job_id: str
    ):
        async def watch() -> list[int]:
            tailer = Tailer(shaky, interval=0.02)
            stream = await begin(tailer.follow(job_id))
            shaky.error = sa.exc.OperationalError("SELECT", {}, Exception("away"))
            late = asyncio.create_task(numbers(tailer.follow(job_id)))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(finish, database, tenant, job_id)
            await asyncio.sleep(0.2)
            assert not stream.done()
            shaky.error = None
            assert await late == [1, 2]
            return await stream

        assert in_time(watch()) == [1, 2]

    def test_ends_the_streams_on_an_error_and_restarts(
        self, shaky: Shaky, database: Database, tenant: str, job_id: str
    ):
        async def watch() -> list[int]:
            tailer = Tailer(shaky, interval=0.02)
            stream = await begin(tailer.follow(job_id))
            shaky.error = RuntimeError("nobody foresaw this")
            assert await stream == [1]
            shaky.error = None
            await asyncio.to_thread(finish, database, tenant, job_id)
            return await numbers(tailer.follow(job_id, after=1))

        assert in_time(watch()) == [2]


class TestCost:
    def test_a_thousand_streams_cost_one_query_a_poll(self, database: Database, tenant: str):
        jobs = [add_job(database, tenant) for _ in range(40)]

        async def watch() -> None:
            tailer = Tailer(database, interval=0.1)
            began = [begin(tailer.follow(job_id, after=1)) for job_id in jobs for _ in range(25)]
            streams = await asyncio.gather(*began)  # each may have asked itself to begin with
            clock = asyncio.get_running_loop().time
            with counted(database) as statements:
                started = clock()
                await eventually_async(lambda: len(statements) >= 10)
                seconds = clock() - started
            asked = [text for text in statements if "FROM" in text]
            assert all(text.startswith("SELECT jobs") for text in asked)
            assert 3 <= len(asked) <= 1 + seconds / 0.1
            for job_id in jobs:
                await asyncio.to_thread(finish, database, tenant, job_id)
            assert await asyncio.gather(*streams) == [[2]] * 1000

        in_time(watch())

    def test_costs_nothing_without_streams(self, database: Database, tenant: str):
        job_id = add_job(database, tenant)

        async def watch() -> int:
            tailer = Tailer(database, interval=0.02)
            stream = await begin(tailer.follow(job_id))
            stream.cancel()
            await asyncio.wait([stream])
            await eventually_async(lambda: tailer._polling is None)
            assert not tailer._feeds
            with counted(database) as statements:
                await asyncio.sleep(0.2)
            return len(statements)

        assert in_time(watch()) == 0

    def test_a_stream_opened_as_the_last_one_closes_is_served(
        self, database: Database, tenant: str
    ):
        job_id = add_job(database, tenant)

        async def watch() -> list[int]:
            tailer = Tailer(database, interval=0.01)
            for _ in range(200):
                async with aclosing(tailer.follow(job_id, after=1)) as seen:
                    assert isinstance(await anext(seen), ProgressSeen)
            stream = asyncio.create_task(numbers(tailer.follow(job_id)))
            await asyncio.to_thread(finish, database, tenant, job_id)
            return await stream

        assert in_time(watch()) == [1, 2]

    def test_holds_no_connection_between_two_polls(self, database: Database, tenant: str):
        job_id = add_job(database, tenant)

        async def watch() -> None:
            tailer = Tailer(database, interval=3600.0)
            stream = await begin(tailer.follow(job_id))
            pool = database.engine.pool
            assert isinstance(pool, sa.QueuePool)
            await eventually_async(lambda: pool.checkedout() == 0)
            await tailer.close()
            await stream

        in_time(watch())


class TestClose:
    def test_ends_all_streams(self, database: Database, tenant: str):
        job_id = add_job(database, tenant)

        async def watch() -> list[list[int]]:
            tailer = Tailer(database)
            streams = [await begin(tailer.follow(job_id)) for _ in range(3)]
            await tailer.close()
            return await asyncio.gather(*streams)

        assert in_time(watch()) == [[1], [1], [1]]

    def test_ends_a_stream_that_has_only_just_begun(self, database: Database, tenant: str):
        job_id = add_job(database, tenant)

        async def watch() -> list[int]:
            tailer = Tailer(database)
            stream = asyncio.create_task(numbers(tailer.follow(job_id)))
            await asyncio.sleep(0)
            await tailer.close()
            return await stream

        assert in_time(watch()) == [1]

    def test_of_an_unused_tailer_does_nothing(self, database: Database):
        in_time(Tailer(database).close())
