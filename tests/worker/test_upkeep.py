"""worker.upkeep: signs of life, and when the dead's jobs are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
import structlog

from store.database.connection import Database
from store.errors import ArtifactStorageError, SchemaError
from store.jobs.workers import leave
from store.settings import Settings
from store.storage import ArtifactStorage
from store.storage.space import reserve, store_files
from store.tables import Reservation, Worker
from tests.databases import make_tables
from tests.store.queues import add_job, add_tenant
from tests.waiting import eventually
from worker import process
from worker import upkeep as module
from worker.catalog import Offer
from worker.context import WorkerContext
from worker.upkeep import Upkeep

SECONDS = 0.01  # between two rounds, here
START = datetime(2026, 1, 1, tzinfo=UTC)
Look = Callable[..., bool]


class Publisher:
    """Counts the tokens published."""

    def __init__(self) -> None:
        self.tokens = 0

    def publish(self, count: int) -> None:
        self.tokens += count


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", SECONDS)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", SECONDS)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[WorkerContext]:
    settings = Settings(home=tmp_path / "home", lease_seconds=0.3)
    settings.home.mkdir()
    database = Database(settings.database_url)
    make_tables(database)
    context = WorkerContext(
        worker_id="w1",
        settings=settings,
        database=database,
        storage=ArtifactStorage(settings.artifacts_url),
        engine=None,  # type: ignore[arg-type] # upkeep has no use for it
        folder=tmp_path,
        backbones={"minilm": tmp_path},
        stopping=threading.Event(),
    )
    context.sign_on()
    yield context
    database.close()


def keep_up(context: WorkerContext, publisher: Publisher | None = None) -> Upkeep:
    return Upkeep(context, publisher=publisher or Publisher())  # type: ignore[arg-type]


def is_signed_on(context: WorkerContext) -> bool:
    with context.database.read() as session:
        return session.scalars(sa.select(Worker.id)).all() == [context.worker_id]


def test_space_is_freed(context: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of an upload whose gateway has died."""
    monkeypatch.setattr(module, "_FREE_SECONDS", 0.01)
    tenant = add_tenant(context.database, "a")
    file = tmp_path / "file"
    file.write_text("stored, and named by no row")
    with context.database.write() as session:
        held = reserve(session, tenant, size=1, max_bytes=1000)
    store_files(
        {"train": file},
        database=context.database,
        storage=context.storage,
        tenant_id=tenant,
        reservation_id=held,
        max_bytes=1000,
    )
    with context.database.write() as session:
        session.execute(sa.update(Reservation).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    upkeep = keep_up(context)
    try:
        eventually(lambda: not list(context.storage.list()))
    finally:
        upkeep.close()


class Rounds:
    """Fakes and counts the work for dead workers.

    Attributes:
        taken: how often jobs were taken back.
        renewed: how often tokens were.
        error: is raised instead, where there is one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, tokens: int = 0) -> None:
        self.taken = self.renewed = 0
        self.error: Exception | None = None
        self._tokens = tokens
        monkeypatch.setattr(module, "take_back_expired", self._take_back)
        monkeypatch.setattr(module, "renew_tokens", self._renew)

    def _take_back(self, _: Database, *, before: datetime) -> int:  # noqa: ARG002 - the real one's
        self.taken += 1
        return 0

    def _renew(self, _: Database) -> int:
        if self.error is not None:
            raise self.error
        self.renewed += 1
        return self._tokens


class TestSignOfLife:
    def test_is_repeated_by_a_forgotten_worker(self, context: WorkerContext):
        upkeep = keep_up(context)
        leave(context.database, context.worker_id)
        eventually(lambda: is_signed_on(context), seconds=5)
        upkeep.close()

    def test_continues_after_errors(self, context: WorkerContext, monkeypatch: pytest.MonkeyPatch):
        rounds = Rounds(monkeypatch)
        rounds.error = ArtifactStorageError("away")
        upkeep = keep_up(context)
        for error in (ZeroDivisionError(), sa.exc.OperationalError("", {}, OSError())):
            rounds.error = error
            leave(context.database, context.worker_id)
            eventually(lambda: is_signed_on(context), seconds=5)
            time.sleep(5 * SECONDS)
        rounds.error = None
        eventually(lambda: rounds.renewed, seconds=5)
        upkeep.close()


class TestTablesOfAnotherVersion:
    @pytest.fixture
    def set_revision(self, context: WorkerContext) -> Callable[[str], str]:
        """Return a function that changes the tables' revision and returns the one before."""

        table = sa.table("alembic_version", sa.column("version_num"))

        def change(revision: str) -> str:
            with context.database.engine.begin() as connection:
                before = connection.execute(sa.select(table)).scalar_one()
                connection.execute(sa.update(table).values(version_num=revision))
            return str(before)

        return change

    def test_end_the_signs_of_life_until_they_fit_again(self, context: WorkerContext, set_revision):
        before = set_revision("another")
        upkeep = keep_up(context)
        leave(context.database, context.worker_id)
        time.sleep(20 * SECONDS)
        assert not is_signed_on(context)
        set_revision(before)
        eventually(lambda: is_signed_on(context), seconds=5)
        upkeep.close()

    def test_take_no_offer_of_backbones(self, context: WorkerContext, set_revision):
        offer = Offer(backbones={}, unavailable={})
        process._publish(context, offer)
        set_revision("another")
        with pytest.raises(SchemaError, match="another"):
            process._publish(context, offer)

    def test_are_not_tidied_and_that_is_logged_once(
        self, context: WorkerContext, set_revision, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "_FREE_SECONDS", SECONDS)
        monkeypatch.setattr(module, "_SWEEP_SECONDS", 3600.0)
        set_revision("another")
        with context.database.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE reservations"))
        with structlog.testing.capture_logs() as entries:
            upkeep = keep_up(context)
            time.sleep(20 * SECONDS)
            upkeep.close()
        assert [entry["event"] for entry in entries] == [
            "the tables were changed; no job is claimed"
        ]

    def test_offer_no_job(
        self, context: WorkerContext, set_revision, monkeypatch: pytest.MonkeyPatch
    ):
        ran: list[str] = []
        monkeypatch.setattr(process, "_UNFIT_SECONDS", 0.0)
        monkeypatch.setattr(process, "run_job", lambda job, **_: ran.append(job.id))
        job = add_job(context.database, add_tenant(context.database, "a"))
        before = set_revision("another")
        process._run_jobs(context)
        assert ran == []
        set_revision(before)
        process._run_jobs(context)
        assert ran == [job]


class TestTheDeadsJobs:
    """Jobs are not reclaimed before live workers had time to renew their leases."""

    @pytest.fixture
    def look(self, context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[Look]:
        """Return a function that runs one round at a moment and returns whether jobs were taken."""
        monkeypatch.setattr(module, "_BEAT_SECONDS", 3600.0)
        rounds = Rounds(monkeypatch)
        upkeep = keep_up(replace(context, settings=Settings(lease_seconds=60)))

        def look(at: float, *, by_the_database: float | None = None) -> bool:
            rounds.taken = 0
            beat_at = START + timedelta(seconds=at if by_the_database is None else by_the_database)
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: at))
            monkeypatch.setattr(module, "beat", lambda *_: beat_at)
            upkeep._look_after_jobs()
            return bool(rounds.taken)

        yield look
        upkeep.close()

    def test_wait_for_a_worker_that_has_just_started(self, look: Look):
        assert [look(at) for at in (0, 5, 10, 14.9)] == [False] * 4
        assert look(15.1)

    def test_wait_after_a_database_outage(self, look: Look):
        assert [look(at) for at in range(0, 22, 2)][-1]
        assert [look(at) for at in (30, 32, 34, 36, 38, 40, 42, 44)] == [False] * 8
        assert look(46)

    def test_wait_after_a_clock_jump(self, look: Look):
        assert [look(at) for at in range(0, 22, 2)][-1]
        times = [22 + 2 * step for step in range(7)]
        assert not any(look(at, by_the_database=at + 100) for at in times)
        assert look(38, by_the_database=138)


class TestTokens:
    def test_that_were_lost_are_published(
        self, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
    ):
        Rounds(monkeypatch, tokens=2)
        publisher = Publisher()
        upkeep = keep_up(context, publisher)
        eventually(lambda: publisher.tokens >= 2, seconds=5)
        upkeep.close()


class TestSweep:
    def test_removes_unreferenced_blobs_and_retries_after_a_failure(
        self, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "_GRACE_SECONDS", 0.0)
        file = context.folder / "blob"
        file.write_text("nobody's")
        context.storage.put("ten_a", file)
        listed, failures = context.storage.list, iter([1, 1])

        def fail() -> object:
            if next(failures, None):
                raise ArtifactStorageError("away")
            return listed()

        monkeypatch.setattr(context.storage, "list", fail)
        upkeep = keep_up(context)
        eventually(lambda: not list(listed()), seconds=5)
        upkeep.close()
