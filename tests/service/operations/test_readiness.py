from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from service.operations import readiness as readiness_module
from service.operations.readiness import Readiness, Report
from store.database.connection import Database
from store.errors import ArtifactStorageError
from store.jobs.workers import register
from tests.full_disk import fill, make_read_only
from tests.waiting import patience, within

ALL_WELL = Report(failing=(), degraded=())


@dataclass
class Parts:
    """A gateway's dependencies, except the database."""

    broker: Callable[[], bool] = lambda: True
    storage: Callable[[], None] = lambda: None
    inference: bool = True
    home: Path = Path(tempfile.gettempdir())
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check_writable(self) -> None:
        with self.lock:
            self.asked += 1
        self.storage()

    async def is_reachable(self) -> bool:
        return self.inference


class Broker:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def is_reachable(self) -> bool:
        return self._parts.broker()


@asynccontextmanager
async def looked_after(database: Database, parts: Parts) -> AsyncIterator[Readiness]:
    readiness = Readiness(
        database=database,
        storage=cast("Any", parts),
        publisher=cast("Any", Broker(parts)),
        inference=cast("Any", parts),
        home=parts.home,
    )
    yield readiness
    await readiness.close()


def report(database: Database, parts: Parts) -> Report:
    async def ask() -> Report:
        async with looked_after(database, parts) as readiness:
            return await readiness.report()

    return asyncio.run(ask())


def add_worker(database: Database) -> None:
    register(database, worker_id="w", device="cpu", backbones=["minilm"], allows_hub=False)


def fail() -> None:
    raise ArtifactStorageError("away")


class TestReport:
    def test_of_a_whole_service_names_nothing(self, database: Database):
        add_worker(database)
        assert report(database, Parts()) == ALL_WELL

    def test_names_what_is_missing_behind_the_gateway(self, database: Database):
        missing = report(database, Parts(broker=lambda: False, inference=False))
        assert missing == Report(failing=(), degraded=("broker", "worker", "inference"))

    def test_names_what_nothing_works_without(self, database: Database):
        add_worker(database)
        assert report(database, Parts(storage=fail)).failing == ("artifacts",)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'another'")
        assert report(database, Parts()).failing == ("tables",)

    def test_does_not_block_and_probes_again_only_after_an_answer(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(readiness_module, "_DEADLINE_SECONDS", 1.0)
        monkeypatch.setattr(readiness_module, "_FRESH_SECONDS", 0.0)
        monkeypatch.setattr(readiness_module, "_WRITTEN_SECONDS", 0.0)
        add_worker(database)
        answer = threading.Event()
        parts = Parts(storage=lambda: None if answer.wait(patience(60)) else fail())

        async def ask() -> None:
            async with looked_after(database, parts) as readiness:
                for _ in range(3):
                    with within(2):
                        told = await readiness.report()
                    assert told == Report(failing=("artifacts",), degraded=())
                assert parts.asked == 1
                answer.set()
                assert await readiness.report() == ALL_WELL
                assert await readiness.report() == ALL_WELL
                assert parts.asked == 2

        asyncio.run(ask())

    def test_waits_no_longer_for_a_database_that_hangs(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(readiness_module, "_DEADLINE_SECONDS", 0.2)
        answer = threading.Event()

        class Hanging(Database):
            @contextmanager
            def read(self) -> Iterator[Any]:
                answer.wait(patience(60))
                with super().read() as session:
                    yield session

        database = Hanging(sqlite_url)
        with within(3):
            assert report(database, Parts()) == Report(failing=("tables",), degraded=("worker",))
        answer.set()

    def test_is_cached_for_a_second(self, database: Database):
        add_worker(database)
        parts = Parts()

        async def ask() -> list[Report]:
            async with looked_after(database, parts) as readiness:
                return await asyncio.gather(*(readiness.report() for _ in range(20)))

        assert asyncio.run(ask()) == [ALL_WELL] * 20
        assert parts.asked == 1

    def test_writes_no_more_often_than_every_few_seconds(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(readiness_module, "_FRESH_SECONDS", 0.0)
        parts = Parts()

        async def ask() -> None:
            async with looked_after(database, parts) as readiness:
                for _ in range(3):
                    await readiness.report()

        asyncio.run(ask())
        assert parts.asked == 1

    @pytest.mark.parametrize("spoil", [fill, make_read_only])
    def test_names_a_home_that_is_full_or_read_only(
        self, database: Database, full_disk: Path, spoil: Callable[[Path], object]
    ):
        add_worker(database)
        assert report(database, Parts(home=full_disk)) == ALL_WELL
        assert list(full_disk.iterdir()) == []
        spoil(full_disk)
        assert report(database, Parts(home=full_disk)).failing == ("home",)

    def test_ends_with_the_gateway_whatever_hangs(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(readiness_module, "_DEADLINE_SECONDS", 0.1)
        answer = threading.Event()
        parts = Parts(storage=lambda: None if answer.wait(patience(60)) else fail())
        with within(3):
            assert report(database, parts).failing == ("artifacts",)
        answer.set()
