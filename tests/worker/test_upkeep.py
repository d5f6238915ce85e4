"""worker.upkeep: signs of life, and when the dead's jobs are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database import Database
from store.errors import ArtifactStorageError
from store.settings import Settings
from store.storage import ArtifactStorage
from store.tables import Base, Worker
from store.workers import leave
from tests.integration.deployment import wait_for
from worker import upkeep as module
from worker.upkeep import Upkeep
from worker.workshop import Workshop

SECONDS = 0.01  # between two rounds, here


class Publisher:
    """Counts the tokens that it is to publish."""

    def __init__(self) -> None:
        self.tokens = 0

    def publish(self, count: int) -> None:
        self.tokens += count


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", SECONDS)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", SECONDS)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    settings = Settings(home=tmp_path / "home", lease_seconds=0.3)
    settings.home.mkdir()
    database = Database(settings.database_url)
    Base.metadata.create_all(database.engine)
    workshop = Workshop(
        worker_id="w1",
        settings=settings,
        database=database,
        storage=ArtifactStorage(settings.artifacts_url),
        engine=None,  # type: ignore[arg-type] # upkeep has no use for it
        folder=tmp_path,
        backbones={"minilm": tmp_path},
        stopping=threading.Event(),
    )
    workshop.sign_on()
    yield workshop
    database.close()


def keep_up(workshop: Workshop, publisher: Publisher | None = None) -> Upkeep:
    return Upkeep(workshop, publisher=publisher or Publisher())  # type: ignore[arg-type]


def is_signed_on(workshop: Workshop) -> bool:
    with workshop.database.read() as session:
        return session.scalars(sa.select(Worker.id)).all() == [workshop.worker_id]


class Rounds:
    """Stands in for what is done for the dead, and counts it.

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

    def _take_back(self, _: Database) -> int:
        self.taken += 1
        return 0

    def _renew(self, _: Database, *, live_seconds: float) -> int:
        assert live_seconds == module.LIVE_SECONDS
        if self.error is not None:
            raise self.error
        self.renewed += 1
        return self._tokens


class TestSignOfLife:
    def test_is_given_again_by_a_worker_that_was_forgotten(self, workshop: Workshop):
        upkeep = keep_up(workshop)
        leave(workshop.database, workshop.worker_id)
        wait_for(lambda: is_signed_on(workshop), seconds=5)
        upkeep.close()

    def test_outlives_whatever_fails(self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
        rounds = Rounds(monkeypatch)
        rounds.error = ArtifactStorageError("away")
        upkeep = keep_up(workshop)
        for error in (ZeroDivisionError(), sa.exc.OperationalError("", {}, OSError())):
            leave(workshop.database, workshop.worker_id)
            wait_for(lambda: is_signed_on(workshop), seconds=5)
            rounds.error = error
        rounds.error = None
        wait_for(lambda: rounds.renewed, seconds=5)
        upkeep.close()


class TestTheDeadsJobs:
    def test_are_not_taken_before_the_living_had_time_to_renew_their_leases(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "_OUTAGE_SECONDS", 0.2)
        rounds = Rounds(monkeypatch)
        upkeep = keep_up(workshop)
        wait_for(lambda: rounds.renewed >= 3, seconds=5)
        assert rounds.taken == 0  # a worker that starts cannot know who could report
        wait_for(lambda: rounds.taken, seconds=5)
        rounds.error = ArtifactStorageError("away")
        time.sleep(0.4)
        rounds.taken = rounds.renewed = 0
        rounds.error = None
        wait_for(lambda: rounds.renewed >= 3, seconds=5)
        assert rounds.taken == 0
        wait_for(lambda: rounds.taken, seconds=5)
        upkeep.close()


class TestTokens:
    def test_that_were_lost_are_published(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ):
        Rounds(monkeypatch, tokens=2)
        publisher = Publisher()
        upkeep = keep_up(workshop, publisher)
        wait_for(lambda: publisher.tokens >= 2, seconds=5)
        upkeep.close()


class TestSweep:
    def test_takes_what_nothing_names_and_tries_again_when_it_fails(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "_GRACE_SECONDS", 0.0)
        file = workshop.folder / "blob"
        file.write_text("nobody's")
        workshop.storage.put("ten_a", file)
        listed, failures = workshop.storage.list, iter([1, 1])

        def fail() -> object:
            if next(failures, None):
                raise ArtifactStorageError("away")
            return listed()

        monkeypatch.setattr(workshop.storage, "list", fail)
        upkeep = keep_up(workshop)
        wait_for(lambda: not list(listed()), seconds=5)
        upkeep.close()
