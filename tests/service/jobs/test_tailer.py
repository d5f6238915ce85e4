from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs import tailer as tailer_module
from service.jobs.tailer import ProgressSeen, Tailer, _Feed, _Look, _State
from store.administration.keys import create_key, replace_key, revoke_key
from store.jobs.actions import cancel, delete
from store.jobs.leases import Lease, Progress
from store.states import JobStatus
from store.tables import JobEvent
from store.tenants import resume_tenant, suspend_tenant
from tests.databases import database as either_database
from tests.databases import database_url, postgres_tables, sqlite_tables
from tests.service.following import begin, finish, in_time, numbers
from tests.service.work import running_to_failure, step
from tests.store.queues import add_job, add_tenant, claimed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from store.database.connection import Database

__all__ = ["database_url", "either_database", "postgres_tables", "sqlite_tables"]


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "acme")


@pytest.fixture
def running(database: Database, tenant: str) -> tuple[str, Lease]:
    """A claimed job with its first two events."""
    add_job(database, tenant)
    job, lease = claimed(database)
    return job.id, lease


class TestFollow:
    @pytest.fixture
    def database(self, either_database: Database) -> Database:
        """Yield one on SQLite, then one on Postgres: the queries must mean the same."""
        return either_database

    def test_yields_past_and_new_events_until_the_last(
        self, database: Database, running: tuple[str, Lease]
    ):
        job_id, lease = running

        async def watch() -> list[int]:
            stream = await begin(Tailer(database).follow(job_id))
            await asyncio.to_thread(lease.report, Progress(), events=[step(1), step(2)])
            await asyncio.sleep(0.3)
            await asyncio.to_thread(lease.fail, code="out_of_memory", message="too large")
            return await stream

        assert in_time(watch()) == [1, 2, 3, 4, 5]

    def test_ends_at_once_after_the_last_event_of_a_finished_job(
        self, database: Database, tenant: str
    ):
        job_id = add_job(database, tenant)
        finish(database, tenant, job_id)

        async def watch() -> tuple[list[int], list[int]]:
            tailer = Tailer(database)
            return await numbers(tailer.follow(job_id, after=1)), await numbers(
                tailer.follow(job_id, after=2)
            )

        assert in_time(watch()) == ([2], [])

    def test_loses_and_repeats_nothing_however_often_it_is_interrupted(
        self, database: Database, running: tuple[str, Lease]
    ):
        job_id, lease = running
        count = 120

        async def watch() -> list[int]:
            tailer = Tailer(database, interval=0.02)
            got: list[int] = []
            while True:
                before = len(got)
                async with aclosing(tailer.follow(job_id, after=got[-1] if got else 0)) as seen:
                    async for item in seen:
                        if isinstance(item, JobEvent):
                            got.append(item.number)
                            if item.data.get("status") == "failed":
                                return got
                        if len(got) - before >= 7:
                            break

        with running_to_failure(lease, steps=count, pause=0.004):
            assert in_time(watch()) == list(range(1, count + 4))

    def test_yields_everything_to_a_slow_reader(
        self,
        database: Database,
        running: tuple[str, Lease],
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(tailer_module, "_RECENT", 4)
        monkeypatch.setattr(tailer_module, "_PAGE", 3)
        job_id, lease = running

        async def watch() -> list[int]:
            got = []
            async with aclosing(Tailer(database, interval=0.02).follow(job_id)) as seen:
                async for item in seen:
                    if not isinstance(item, JobEvent):
                        continue
                    got.append(item.number)
                    if item.number == 2:
                        for number in range(1, 31):
                            await asyncio.to_thread(lease.report, Progress(), events=[step(number)])
                        await asyncio.to_thread(lease.fail, code="x", message="the end")
                        await asyncio.sleep(0.2)
            return got

        assert in_time(watch()) == list(range(1, 34))

    def test_yields_progress_between_events(self, database: Database, running: tuple[str, Lease]):
        job_id, lease = running

        async def watch() -> list[tuple[str | None, int | None]]:
            got = []
            async with aclosing(Tailer(database, interval=0.02).follow(job_id, after=2)) as seen:
                async for item in seen:
                    assert isinstance(item, ProgressSeen)
                    got.append((item.phase, item.step))
                    if len(got) == 3:
                        break
                    progress = Progress(phase="selecting", step=len(got) * 10, total_steps=100)
                    await asyncio.to_thread(lease.report, progress)
            return got

        assert in_time(watch()) == [(None, None), ("selecting", 10), ("selecting", 20)]

    def test_yields_progress_after_past_events(
        self, database: Database, running: tuple[str, Lease]
    ):
        job_id, lease = running
        lease.report(Progress(phase="training", step=2, total_steps=9), events=[step(1), step(2)])

        async def join() -> list[Any]:
            got = []
            async with aclosing(Tailer(database, interval=0.02).follow(job_id)) as seen:
                async for item in seen:
                    got.append(item)
                    if len(got) == 5:
                        break
            return got

        kinds = [type(item) for item in in_time(join())]
        assert kinds == [JobEvent, JobEvent, JobEvent, ProgressSeen, JobEvent]

    def test_yields_the_last_event_last(self, database: Database, running: tuple[str, Lease]):
        job_id, lease = running

        async def watch() -> list[Any]:
            got = []
            async with aclosing(Tailer(database, interval=0.02).follow(job_id, after=2)) as seen:
                async for item in seen:
                    got.append(item)
                    if len(got) == 1:
                        await asyncio.to_thread(lease.fail, code="x", message="the end")
            return got

        got = in_time(watch())
        assert [type(item) for item in got] == [ProgressSeen, ProgressSeen, JobEvent]
        assert got[1].status is JobStatus.FAILED

    def test_ends_when_the_job_is_deleted(self, database: Database, tenant: str):
        job_id = add_job(database, tenant)

        async def watch() -> list[int]:
            stream = await begin(Tailer(database).follow(job_id))

            def end_it() -> None:
                with database.write() as session:
                    cancel(session, tenant, job_id)
                    delete(session, tenant, job_id)

            await asyncio.to_thread(end_it)
            return await stream

        assert in_time(watch()) == [1]

    def test_ends_when_the_key_is_revoked_and_only_then(
        self, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.1)
        job_id = add_job(database, tenant)
        with database.write() as session:
            first, other = (create_key(session, tenant)[0].id for _ in range(2))

        def revoke() -> None:
            with database.write() as session:
                revoke_key(session, first)

        async def watch() -> None:
            tailer = Tailer(database, interval=0.02)
            watchers = [
                await begin(tailer.follow(job_id, key_id=key)) for key in (first, other, None)
            ]
            await asyncio.sleep(0.3)
            assert not any(watcher.done() for watcher in watchers)
            await asyncio.to_thread(revoke)
            assert await watchers[0] == [1]
            await asyncio.sleep(0.3)
            assert not any(watcher.done() for watcher in watchers[1:])
            await asyncio.to_thread(finish, database, tenant, job_id)
            assert [await watcher for watcher in watchers[1:]] == [[1, 2], [1, 2]]

        in_time(watch())

    @pytest.mark.parametrize("end", ["expiry", "suspension"])
    def test_ends_when_the_key_admits_no_requests_any_more(
        self, end: str, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.1)
        job_id = add_job(database, tenant)
        with database.write() as session:
            key = create_key(session, tenant)[0].id

        def end_key() -> None:
            with database.write() as session:
                if end == "expiry":
                    replace_key(session, key, owner_id=tenant, grace=timedelta(seconds=0.2))
                else:
                    suspend_tenant(session, tenant)

        async def watch() -> list[int]:
            watcher = await begin(Tailer(database, interval=0.02).follow(job_id, key_id=key))
            await asyncio.sleep(0.3)
            assert not watcher.done()
            await asyncio.to_thread(end_key)
            return await watcher

        assert in_time(watch()) == [1]

    def test_a_key_whose_tenant_is_resumed_gets_streams_again(
        self, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.1)
        job_id = add_job(database, tenant)
        with database.write() as session:
            key = create_key(session, tenant)[0].id

        def change(how: Callable[..., object]) -> None:
            with database.write() as session:
                how(session, tenant)

        async def watch() -> list[int]:
            tailer = Tailer(database, interval=0.02)
            first = await begin(tailer.follow(job_id, key_id=key))
            await asyncio.to_thread(change, suspend_tenant)
            assert await first == [1]
            await asyncio.to_thread(change, resume_tenant)
            second = await begin(tailer.follow(job_id, key_id=key))
            await asyncio.sleep(0.3)
            assert not second.done()
            await asyncio.to_thread(finish, database, tenant, job_id)
            return await second

        assert in_time(watch()) == [1, 2]

    def test_a_stream_that_opens_during_the_check_of_older_ones_is_left_to_the_next_check(
        self, database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.1)
        job_id = add_job(database, tenant)
        is_asked, go_on = threading.Event(), threading.Event()
        answers = iter([frozenset[str]()])

        def find_slowly(session: Session, key_ids: set[str]) -> frozenset[str]:  # noqa: ARG001
            is_asked.set()
            go_on.wait()
            return next(answers, frozenset(key_ids))

        monkeypatch.setattr(tailer_module, "find_admitted", find_slowly)

        async def watch() -> list[int]:
            tailer = Tailer(database, interval=0.02)
            first = await begin(tailer.follow(job_id, key_id="key_1"))
            await asyncio.to_thread(is_asked.wait)
            second = await begin(tailer.follow(job_id, key_id="key_1"))
            go_on.set()
            assert await first == [1]
            await asyncio.to_thread(finish, database, tenant, job_id)
            return await second

        assert in_time(watch()) == [1, 2]


class TestFeed:
    def test_takes_an_event_once_that_two_polls_have_seen(self):
        def event(number: int) -> JobEvent:
            return JobEvent(job_id="job_1", number=number)

        def look(last: int, *numbers: int) -> _Look:
            progress = ProgressSeen(JobStatus.TRAINING, None, None, None, None)
            return _Look(_State(last, progress), [event(number) for number in numbers])

        async def watch() -> list[int]:
            feed = _Feed()
            feed.take(look(5))
            feed.take(look(6, 6, 7))  # number 7 came between the poll's two queries
            feed.take(look(8, 7, 8))
            seen = feed.look(5)
            assert seen is not None
            return [event.number for event in seen.events]

        assert in_time(watch()) == [6, 7, 8]
