"""worker.runner: engines that die, jobs that fail, and a store or database that is away."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from store.errors import ArtifactStorageError
from store.jobs.actions import cancel, list_events, pause
from store.jobs.leases import Lease
from store.settings import Settings
from store.states import JobStatus
from store.tables import Job
from tests.waiting import eventually, patience
from tests.worker.scripted_engine import (
    BEGIN,
    NOTHING,
    SELECTED,
    Line,
    ScriptedEngine,
    Until,
    checkpoint,
    done,
    event,
    failed,
    step,
)
from tests.worker.shop import DIED, SPEC, Shop
from worker import reporting, runner
from worker.runner import UnfitError

if TYPE_CHECKING:
    from store.storage import Blob
    from worker.engine.messages import Message


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
        def script(number: int) -> list[Line]:
            def is_kept() -> bool:
                return (shop.row().checkpoint or {}).get("step") == number

            return [*BEGIN, checkpoint(number, b"x"), Until(is_kept), DIED]

        engine = ScriptedEngine(*map(script, range(1, 6)), [done()])
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

    def test_for_lack_of_memory_is_the_jobs_at_once(self, shop: Shop):
        shop.run(ScriptedEngine([*BEGIN, failed("out_of_memory", text="too little")]))
        row = shop.row()
        assert (row.status, row.error["code"]) == (JobStatus.FAILED, "out_of_memory")

    def test_for_lack_of_memory_beside_earlier_jobs_is_tried_in_a_new_engine(self, shop: Shop):
        short = failed("out_of_memory", text="too little")
        engine = ScriptedEngine([*BEGIN, short], [*BEGIN, done()])
        engine.jobs = 3
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt, engine.kills) == (JobStatus.SUCCEEDED, 1, 1)

    def test_for_lack_of_memory_in_a_new_engine_is_final(self, shop: Shop):
        short = failed("out_of_memory", text="too little")
        engine = ScriptedEngine([*BEGIN, short], [*BEGIN, short])
        engine.jobs = 3
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.error["code"]) == (JobStatus.FAILED, "out_of_memory")

    def test_of_a_full_disk_is_waited_out(self, shop: Shop):
        full = failed("disk_full", text="no space left", is_lasting=False)
        shop.run(ScriptedEngine(*[[*BEGIN, full]] * 5, [*BEGIN, done()]))
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1)

    def test_of_a_disk_that_stays_full_is_the_jobs(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", -1.0)
        full = failed("disk_full", text="no space left: '/srv/work/delta'", is_lasting=False)
        shop.run(ScriptedEngine([*BEGIN, full]))
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "disk_full"
        assert "/srv" not in row.error["message"]

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
        assert str(shop.settings.home) not in row.error["message"]


class TestRefusedResult:
    """A store that does not accept the artifacts of a job that is trained."""

    @pytest.fixture
    def meanwhile(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
        """Let the store refuse a file for each entry, which is called then."""
        put, calls = shop.storage.put, list[Callable[[], object]]()

        def refuse(tenant_id: str, file: Path, *, blob: Blob) -> object:
            if not calls:
                return put(tenant_id, file, blob=blob)
            calls.pop(0)()
            raise ArtifactStorageError("the artifact store cannot store it: /srv is read-only")

        monkeypatch.setattr(shop.storage, "put", refuse)
        return calls

    @pytest.fixture
    def long_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "_PAUSE_SECONDS", 3600.0)

    def test_is_stored_later_without_training_again(
        self, shop: Shop, meanwhile: list[Callable[[], object]]
    ):
        meanwhile += [lambda: None] * 4
        engine = ScriptedEngine([*BEGIN, step(1), done(b"delta")])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED
        assert shop.artifacts() == {"float32": b"delta"}
        assert engine.kills == 0

    def test_is_told_to_the_owner_once(self, shop: Shop, meanwhile: list[Callable[[], object]]):
        meanwhile += [lambda: None] * 4
        shop.run(ScriptedEngine([*BEGIN, done()]))
        (told,) = shop.warnings()
        assert "the artifact store does not accept it; the worker tries again" in told
        assert "/srv" not in told

    def test_is_told_before_the_first_pause(
        self,
        shop: Shop,
        meanwhile: list[Callable[[], object]],
        long_pauses: None,  # noqa: ARG002 - the worker waits for long
    ):
        meanwhile += [lambda: None]
        job = threading.Thread(target=shop.run, args=[ScriptedEngine([*BEGIN, done()])])
        job.start()
        eventually(shop.warnings)
        shop.stopping.set()
        job.join()

    @pytest.mark.parametrize(
        ("ask", "state"), [(cancel, JobStatus.CANCELLED), (pause, JobStatus.PAUSED)]
    )
    def test_does_not_delay_its_owner(
        self,
        ask: Callable[..., Job],
        state: JobStatus,
        shop: Shop,
        meanwhile: list[Callable[[], object]],
        long_pauses: None,  # noqa: ARG002 - the worker waits for long
    ):
        engine = ScriptedEngine([*BEGIN, done()])
        asking = threading.Thread(
            target=lambda: (eventually(shop.warnings), shop.asks(ask)(engine))
        )
        asking.start()
        meanwhile += [lambda: None]
        shop.run(engine)
        asking.join()
        assert shop.status() is state
        assert shop.artifacts() == {}

    def test_does_not_delay_a_shutdown(
        self,
        shop: Shop,
        meanwhile: list[Callable[[], object]],
        long_pauses: None,  # noqa: ARG002 - the worker waits for long
    ):
        meanwhile += [shop.stopping.set]
        shop.run(ScriptedEngine([*BEGIN, done()]))
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)

    def test_is_dropped_when_another_worker_has_the_job(
        self,
        shop: Shop,
        meanwhile: list[Callable[[], object]],
        long_pauses: None,  # noqa: ARG002 - the worker waits for long
    ):
        def take_over() -> None:
            with shop.database.write() as session:
                session.execute(sa.update(Job).values(fence=Job.fence + 1, worker_id="worker-2"))

        meanwhile += [take_over]
        engine = ScriptedEngine([*BEGIN, done(b"late")])
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.worker_id) == (JobStatus.TRAINING, "worker-2")
        assert shop.artifacts() == {}
        assert engine.kills == 1

    def test_fails_the_job_in_the_end(
        self,
        shop: Shop,
        meanwhile: list[Callable[[], object]],
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", 0.2)
        meanwhile += [lambda: None] * 10_000
        shop.run(ScriptedEngine([*BEGIN, done()]))
        row = shop.row()
        assert row.status is JobStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "artifact_storage"
        assert "/srv" not in row.error["message"]


class TestTrouble:
    def test_is_not_over_when_a_job_that_starts_over_stores_its_first_checkpoint_again(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", 0.3)
        kept: list[int] = []
        keep = Lease.keep_checkpoint

        def count(lease: Lease, *, step: int, files: Mapping[str, Blob]) -> None:
            keep(lease, step=step, files=files)
            kept.append(step)

        monkeypatch.setattr(Lease, "keep_checkpoint", count)
        full = failed("disk_full", text="no space left", is_lasting=False)

        def script(number: int) -> list[Line]:
            return [
                *BEGIN,
                first_checkpoint,
                Until(lambda: len(kept) > number),
                full,
            ]

        def first_checkpoint(engine: ScriptedEngine) -> Message | None:
            shutil.rmtree(Path(engine.job.checkpoints) / "step-00000000", ignore_errors=True)
            return checkpoint(0, b"x")(engine)

        shop.run(ScriptedEngine(*map(script, range(100))))
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "disk_full"
        assert len(kept) > 2
        assert len([text for text in shop.warnings() if "disk is full" in text]) == 1

    def test_of_two_kinds_by_turns_is_one(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(runner, "_STORAGE_SECONDS", 0.3)
        errors = cycle([ArtifactStorageError("read-only"), OSError("input/output error")])

        def refuse(*_: object, **__: object) -> object:
            raise next(errors)

        monkeypatch.setattr(shop.storage, "put", refuse)
        shop.run(ScriptedEngine(*[[*BEGIN, done()]] * 1000))
        row = shop.row()
        assert row.error is not None
        assert row.error["code"] == "artifact_storage"
        told = shop.warnings()
        assert len([text for text in told if "the head delta is ready" in text]) == 1
        assert len([text for text in told if "artifact store is unavailable" in text]) == 1


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
