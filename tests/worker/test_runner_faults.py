"""worker.runner: engines that die, jobs that fail, and a store or database that is away."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store.errors import ArtifactStorageError
from store.jobs.actions import list_events
from store.settings import Settings
from store.states import JobStatus
from store.tables import Job
from tests.waiting import patience
from tests.worker.scripted_engine import (
    BEGIN,
    NOTHING,
    SELECTED,
    ScriptedEngine,
    checkpoint,
    done,
    event,
    failed,
    step,
)
from tests.worker.shop import DIED, SPEC, Shop
from worker import reporting, runner
from worker.runner import UnfitError


class TestDeath:
    def test_of_the_engine_is_survived(self, shop: Shop):
        engine = ScriptedEngine([*BEGIN, step(1), DIED], [*BEGIN, step(1), done()])
        shop.run(engine)
        assert engine.kills == 1
        assert shop.status() is JobStatus.SUCCEEDED
        events = shop.events()
        assert len([event for event in events if event == ("step", 1)]) == 1
        assert events.count(("selection", 0)) == 1

    def test_is_logged_with_the_step_it_resumes_from(self, shop: Shop):
        resumed = event("resumed", step=1, text="resuming from the checkpoint of step 1")
        engine = ScriptedEngine([*BEGIN, step(1), DIED], [resumed, step(2), done()])
        shop.run(engine)
        with shop.database.read() as session:
            messages = [event.message for event in list_events(session, shop.row(), limit=99)[0]]
        assert messages.count("resuming from the checkpoint of step 1") == 1
        died = next(place for place, text in enumerate(messages) if "SIGKILL" in text)
        assert messages[died + 1] == "resuming from the checkpoint of step 1"

    def test_again_and_again_fails_the_job(self, shop: Shop):
        shop.run(ScriptedEngine(*[[*BEGIN, DIED]] * 3))
        row = shop.row()
        assert row.status is JobStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "engine_crashed"
        assert "SIGKILL" in row.error["message"]

    def test_a_newer_checkpoint_resets_the_tries(self, shop: Shop):
        scripts = [[*BEGIN, checkpoint(number, b"x"), DIED] for number in range(1, 6)]
        engine = ScriptedEngine(*scripts, [done()])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED

    def test_silence_counts_as_death(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shop, "settings", Settings(engine_stall_seconds=0.05))
        engine = ScriptedEngine(*[[*BEGIN, step(1)]] * 3)
        shop.run(engine)
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "engine_stalled"

    def test_while_loading_silence_is_allowed(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shop, "settings", Settings(engine_stall_seconds=1e-6))
        engine = ScriptedEngine([*[NOTHING] * 5, SELECTED, done()])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED


class TestFailure:
    def test_is_the_jobs_error(self, shop: Shop):
        invalid = failed("dataset_invalid", text="train: row 3: empty", param="dataset")
        shop.run(ScriptedEngine([invalid]))
        row = shop.row()
        assert row.status is JobStatus.FAILED
        assert row.error == {
            "code": "dataset_invalid",
            "message": "train: row 3: empty",
            "param": "dataset",
        }

    def test_that_is_temporary_is_retried(self, shop: Shop):
        odd = failed("internal_error", text="unexpected", is_lasting=False)
        shop.run(ScriptedEngine([*BEGIN, odd], [*BEGIN, done()]))
        assert shop.status() is JobStatus.SUCCEEDED

    def test_of_a_full_disk_is_waited_out(self, shop: Shop):
        full = failed("disk_full", text="no space left", is_lasting=False)
        shop.run(ScriptedEngine(*[[*BEGIN, full]] * 5, [*BEGIN, done()]))
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1)

    def test_of_a_disk_that_stays_full_is_the_jobs(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", -1.0)
        full = failed("disk_full", text="no space left", is_lasting=False)
        shop.run(ScriptedEngine([*BEGIN, full]))
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "disk_full"

    def test_of_a_spec_of_another_version_is_reported_at_once(self, shop: Shop):
        with shop.database.write() as session:
            session.execute(sa.update(Job).values(spec={**SPEC, "training": {"epochs": "three"}}))
        engine = ScriptedEngine()
        shop.run(engine)
        error = shop.row().error
        assert error is not None
        assert error["code"] == "invalid_argument"
        assert error["param"] == "training.epochs"
        assert engine.kills == 0

    def test_of_a_missing_data_set_is_reported_at_once(self, shop: Shop):
        for blob in list(shop.storage.list()):
            shop.storage.delete(blob.tenant_id, blob.sha256)
        shop.run(ScriptedEngine())
        row = shop.row()
        assert row.error is not None
        assert (row.error["code"], row.error["param"]) == ("dataset_lost", "dataset")
        assert "upload it again" in row.error["message"]

    def test_of_a_store_that_is_away_is_waited_out(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        fetch, failures = shop.storage.fetch, iter([1, 1])

        def fail(tenant_id: str, sha256: str, *, to: Path) -> None:
            if next(failures, None):
                raise ArtifactStorageError("the artifact store cannot be reached")
            fetch(tenant_id, sha256, to=to)

        monkeypatch.setattr(shop.storage, "fetch", fail)
        shop.run(ScriptedEngine([*BEGIN, done()]))
        assert shop.status() is JobStatus.SUCCEEDED

    def test_of_a_store_that_stays_away_is_the_jobs(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", -1.0)
        (shop.settings.home / "artifacts").rename(shop.settings.home / "away")
        shop.run(ScriptedEngine())
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "artifact_storage"


class TestOutage:
    def test_of_the_database_loses_nothing(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        write, failures = shop.database.write, iter(range(12))

        def fail() -> object:
            if next(failures, None) is not None:
                raise sa.exc.OperationalError("SELECT 1", {}, Exception("server closed"))
            return write()

        def cut(_: ScriptedEngine) -> None:
            monkeypatch.setattr(shop.database, "write", fail)

        engine = ScriptedEngine([*BEGIN, step(1), cut, *map(step, range(2, 5)), done()])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED
        steps = [number for kind, number in shop.events() if kind == "step"]
        assert steps == [1, 2, 3, 4]


class TestUnfit:
    def test_a_broken_engine_is_not_the_jobs_fault(self, shop: Shop):
        engine = ScriptedEngine()
        engine.is_ready = False
        engine.say_before_ready(DIED)
        with pytest.raises(UnfitError, match="engine"):
            shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)

    def test_a_broken_disk_is_not_the_jobs_fault(self, shop: Shop):
        shop.folder.write_text("no folder")
        with pytest.raises(UnfitError, match="folder"):
            shop.run(ScriptedEngine())
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)


class TestSlowStore:
    def test_keeps_the_lease(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        fetch, leases = shop.storage.fetch, set()

        def slowly(*args: Any, **kwargs: Any) -> None:
            while len(leases) < 4:
                leases.add(shop.row().lease_until)
                time.sleep(0.01)
            fetch(*args, **kwargs)

        monkeypatch.setattr(shop.storage, "fetch", slowly)
        shop.run(ScriptedEngine([SELECTED, done()]), seconds=60)
        assert shop.status() is JobStatus.SUCCEEDED

    def test_a_worker_that_ends_meanwhile_counts_no_crash(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(reporting, "_STOPPING_SECONDS", 0.05)

        is_over = threading.Event()

        def hang(*_: object, **__: object) -> None:
            shop.stopping.set()
            is_over.wait(patience(30))

        monkeypatch.setattr(shop.storage, "fetch", hang)
        shop.run(ScriptedEngine())
        is_over.set()
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)

    def test_a_worker_that_ends_while_a_model_loads_hands_back_at_once(self, shop: Shop):
        def end(_: ScriptedEngine) -> None:
            shop.stopping.set()

        engine = ScriptedEngine([end, *[NOTHING] * 1000])
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt, engine.kills) == (JobStatus.QUEUED, 1, 1)
