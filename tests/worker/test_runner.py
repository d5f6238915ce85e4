"""worker.runner: a claimed job ends as the engine, its owner and the store's outages say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from store.database import Database
from store.datasets import Split, add_dataset
from store.errors import ArtifactStorageError
from store.jobs import cancel, get_job, list_artifacts, list_events, pause
from store.leases import Lease
from store.settings import Settings
from store.states import JobStatus
from store.storage import ArtifactStorage
from store.tables import Base, Job
from tests.store.queues import add_job, add_tenant, claimed
from tests.worker.scripted_engine import (
    BEGIN,
    NOTHING,
    RESULT,
    SELECTED,
    ScriptedEngine,
    Until,
    checkpoint,
    done,
    failed,
    step,
    stopped,
    told,
)
from worker import checkpoint_keeper, reporting, runner
from worker.engine import EngineDiedError
from worker.runner import UnfitError, run_job
from worker.workshop import Workshop

if TYPE_CHECKING:
    from store.claims import ClaimedJob

SPEC = {
    "model": "minilm",
    "task": {"type": "classification", "text": "t", "label": "y", "image": None, "metric": None},
    "k": 1,
    "xi": 0.9,
    "d": 0.85,
    "n_samples": None,
    "strategy": "layer-wise",
    "teleport": "information",
    "training": {
        "epochs": 1,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "max_length": 64,
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "seed": 0,
        "precision": "auto",
        "early_stopping_patience": None,
    },
}
DIED = EngineDiedError("the engine was killed by SIGKILL")


class Shop:
    """A worker with one queued job, without its engine."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        home.mkdir()
        self.database = Database(self.settings.database_url)
        Base.metadata.create_all(self.database.engine)
        self.storage = ArtifactStorage(self.settings.artifacts_url)
        self.tenant = add_tenant(self.database, "a")
        self.stopping = threading.Event()
        self.folder = home / "work"
        source = home / "train"
        source.write_bytes(b"rows")
        blob = self.storage.put(self.tenant, source)
        with self.database.write() as session:
            dataset = add_dataset(
                session,
                self.tenant,
                name=None,
                splits={"train": Split(blob=blob, rows=1)},
                columns={},
                profile={},
                max_bytes=100,
            )
            self.dataset = dataset.id
        self.job = add_job(
            self.database, self.tenant, spec={**SPEC, "dataset": dataset.id}, dataset_id=dataset.id
        )

    def run(self, engine: ScriptedEngine, *, seconds: float = 60) -> ClaimedJob:
        job, _ = claimed(self.database, seconds=seconds)
        workshop = Workshop(
            worker_id="worker-1",
            settings=self.settings,
            database=self.database,
            storage=self.storage,
            engine=engine,  # type: ignore[arg-type] # it stands in for the process
            folder=self.folder,
            backbones={"minilm": Path("/models/minilm")},
            stopping=self.stopping,
        )
        run_job(job, workshop=workshop)
        assert not (self.folder / job.id).exists()
        return job

    def row(self) -> Job:
        with self.database.read() as session:
            return get_job(session, self.tenant, self.job, with_heads=True)

    def status(self) -> JobStatus:
        return self.row().status

    def events(self) -> list[tuple[str, int | None]]:
        with self.database.read() as session:
            events, _ = list_events(session, self.row(), limit=1000)
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            return [(event.type, event.step) for event in events]

    def warnings(self) -> list[str]:
        with self.database.read() as session:
            events, _ = list_events(session, self.row(), limit=1000)
        return [event.message for event in events if event.level == "warn"]

    def artifacts(self) -> dict[str, bytes]:
        with self.database.read() as session:
            rows = list_artifacts(session, self.row())
        return {
            row.encoding: b"".join(self.storage.read(row.tenant_id, row.sha256)) for row in rows
        }

    def asks(self, what: Callable[..., Job]) -> Callable[[ScriptedEngine], None]:
        """Make a line at which the owner asks for something."""

        def ask(_: ScriptedEngine) -> None:
            with self.database.write() as session:
                what(session, self.tenant, self.job)

        return ask


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "home")
    yield shop
    shop.database.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_REPORT_SECONDS", 0.001)
    monkeypatch.setattr(reporting, "_PAUSE_SECONDS", 0.01)
    for module in (runner, checkpoint_keeper):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)


class TestSuccess:
    def test_keeps_what_the_engine_tells(self, shop: Shop):
        metrics = told("evaluated", step=4, total_steps=4, metrics={"accuracy": 0.5})
        finished = told("finished", step=4, total_steps=4)
        engine = ScriptedEngine([*BEGIN, *map(step, range(1, 5)), metrics, finished, done()])
        shop.run(engine)
        row = shop.row()
        assert row.status is JobStatus.SUCCEEDED
        assert row.selection == {"heads": [[0, 1]], "trainable_parameters": 10, "fraction": 0.1}
        assert row.heads is not None
        assert row.heads["job"] == shop.job
        assert row.result == RESULT
        assert (row.step, row.total_steps, row.phase) == (4, 4, "writing")
        assert shop.artifacts() == {"float32": b"delta"}
        assert shop.events() == [
            *[("status", None)] * 2,
            ("message", 0),
            ("status", None),
            ("selection", 0),
            ("status", None),
            *(("step", number) for number in range(1, 5)),
            ("metrics", 4),
            ("message", 4),
            ("status", None),
        ]

    def test_the_engine_gets_the_files_and_the_spec(self, shop: Shop):
        read: list[bytes] = []
        engine = ScriptedEngine(
            [
                lambda it: read.append(Path(it.job.arguments["train"]).read_bytes()),
                SELECTED,
                done(),
            ]
        )
        shop.run(engine)
        assert read == [b"rows"]
        arguments = engine.job.arguments
        assert (arguments["model"], arguments["k"]) == ("/models/minilm", 1)
        assert arguments["checkpoint_seconds"] == shop.settings.checkpoint_seconds


class TestCheckpoints:
    def test_are_stored_with_the_events_before_them(self, shop: Shop):
        def look(_: ScriptedEngine) -> None:
            row = shop.row()
            assert row.checkpoint is not None
            assert row.checkpoint["step"] == 2
            assert ("step", 2) in shop.events()

        kept = Until(lambda: shop.row().checkpoint is not None)
        engine = ScriptedEngine(
            [*BEGIN, step(1), step(2), checkpoint(2, b"state"), kept, look, DIED], [done()]
        )
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED

    def test_of_another_worker_are_gone_on_from(self, shop: Shop):
        def hand_back(_: ScriptedEngine) -> None:
            shop.stopping.set()

        first = ScriptedEngine(
            [
                *BEGIN,
                step(1),
                checkpoint(1, b"one"),
                hand_back,
                NOTHING,
                stopped("pause"),
            ]
        )
        shop.run(first)
        assert shop.status() is JobStatus.QUEUED
        assert first.wishes == ["pause"]
        shop.stopping.clear()
        found: list[bytes] = []

        def look(it: ScriptedEngine) -> None:
            folder = Path(it.job.arguments["checkpoint_dir"])
            found.extend(path.read_bytes() for path in folder.glob("step-00000001/*"))

        second = ScriptedEngine([look, told("resumed", step=1), *map(step, range(1, 5)), done()])
        shop.run(second)
        assert found == [b"one"]
        assert shop.status() is JobStatus.SUCCEEDED
        steps = [number for kind, number in shop.events() if kind == "step"]
        assert steps == [1, 2, 3, 4]

    def test_one_that_the_store_has_lost_is_done_without(self, shop: Shop):
        def lose(_: ScriptedEngine) -> None:
            row = shop.row()
            assert row.checkpoint is not None
            for blob in row.checkpoint["files"].values():
                shop.storage.delete(shop.tenant, blob["sha256"])
            shop.stopping.set()

        kept = Until(lambda: shop.row().checkpoint is not None)
        shop.run(
            ScriptedEngine(
                [*BEGIN, step(1), checkpoint(1, b"one"), kept, lose, NOTHING, stopped("pause")]
            )
        )
        shop.stopping.clear()
        left: list[Path] = []

        def look(it: ScriptedEngine) -> None:
            left.extend(Path(it.job.arguments["checkpoint_dir"]).iterdir())

        shop.run(ScriptedEngine([look, *BEGIN, DIED], [*BEGIN, *map(step, range(1, 5)), done()]))
        assert left == []
        assert shop.status() is JobStatus.SUCCEEDED
        assert [number for kind, number in shop.events() if kind == "step"] == [1, 2, 3, 4]
        assert len([text for text in shop.warnings() if "is missing" in text]) == 1

    def test_one_that_is_gone_already_is_passed_over(self, shop: Shop):
        gone = told("checkpoint", step=1, total_steps=4, checkpoint=["/nowhere/step-00000001/x"])
        engine = ScriptedEngine([*BEGIN, gone, done()])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED

    def test_one_that_the_store_does_not_take_is_tried_again(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        put, failures = shop.storage.put, iter([1, 1, 1])

        def fail(tenant_id: str, file: Path) -> object:
            if next(failures, None):
                raise ArtifactStorageError("the artifact store is full")
            return put(tenant_id, file)

        monkeypatch.setattr(shop.storage, "put", fail)

        kept = Until(lambda: shop.row().checkpoint is not None)
        shop.run(ScriptedEngine([*BEGIN, checkpoint(1, b"x"), kept, done()]))
        assert shop.status() is JobStatus.SUCCEEDED

    def test_a_damaged_one_is_dropped_and_the_job_starts_anew(self, shop: Shop):
        left: list[Path] = []
        broken = failed("checkpoint_invalid", text="damaged", is_lasting=False)
        engine = ScriptedEngine(
            [*BEGIN, checkpoint(1, b"x"), broken],
            [
                lambda it: left.extend(Path(it.job.arguments["checkpoint_dir"]).iterdir()),
                done(),
            ],
        )
        shop.run(engine)
        assert left == []
        assert shop.status() is JobStatus.SUCCEEDED


class TestDeath:
    def test_of_the_engine_is_survived(self, shop: Shop):
        engine = ScriptedEngine([*BEGIN, step(1), DIED], [*BEGIN, step(1), done()])
        shop.run(engine)
        assert engine.kills == 1
        assert shop.status() is JobStatus.SUCCEEDED
        events = shop.events()
        assert len([event for event in events if event == ("step", 1)]) == 1
        assert events.count(("selection", 0)) == 1

    def test_is_told_with_where_it_goes_on(self, shop: Shop):
        resumed = told("resumed", step=1, text="going on from the checkpoint of step 1")
        engine = ScriptedEngine([*BEGIN, step(1), DIED], [resumed, step(2), done()])
        shop.run(engine)
        with shop.database.read() as session:
            messages = [event.message for event in list_events(session, shop.row(), limit=99)[0]]
        assert messages.count("going on from the checkpoint of step 1") == 1
        died = next(place for place, text in enumerate(messages) if "SIGKILL" in text)
        assert messages[died + 1] == "going on from the checkpoint of step 1"

    def test_again_and_again_fails_the_job(self, shop: Shop):
        shop.run(ScriptedEngine(*[[*BEGIN, DIED]] * 3))
        row = shop.row()
        assert row.status is JobStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "engine_crashed"
        assert "SIGKILL" in row.error["message"]

    def test_of_a_newer_checkpoint_tries_are_counted_anew(self, shop: Shop):
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

    def test_that_may_pass_is_tried_again(self, shop: Shop):
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

    def test_of_a_data_set_that_is_gone_is_told_at_once(self, shop: Shop):
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


class TestWishes:
    def test_cancel_reaches_the_engine_and_ends_the_job(self, shop: Shop):
        engine = ScriptedEngine([*BEGIN, step(1), shop.asks(cancel), NOTHING, stopped("cancel")])
        shop.run(engine)
        assert engine.wishes == ["cancel"]
        assert shop.status() is JobStatus.CANCELLED

    def test_pause_keeps_the_checkpoint(self, shop: Shop):
        engine = ScriptedEngine(
            [
                *BEGIN,
                step(1),
                shop.asks(pause),
                NOTHING,
                checkpoint(1, b"x"),
                stopped("pause"),
            ]
        )
        shop.run(engine)
        row = shop.row()
        assert row.status is JobStatus.PAUSED
        assert row.checkpoint is not None

    def test_cancel_wins_over_pause(self, shop: Shop):
        engine = ScriptedEngine(
            [
                *BEGIN,
                shop.asks(pause),
                NOTHING,
                shop.asks(cancel),
                NOTHING,
                stopped("pause"),
            ]
        )
        shop.run(engine)
        assert engine.wishes == ["pause", "cancel"]
        assert shop.status() is JobStatus.CANCELLED

    @pytest.mark.parametrize(
        ("asked", "state"), [(cancel, JobStatus.CANCELLED), (pause, JobStatus.PAUSED)]
    )
    def test_one_that_races_with_completion_wins(
        self, shop: Shop, asked: Callable[..., Job], state: JobStatus
    ):
        engine = ScriptedEngine([*BEGIN, step(4), shop.asks(asked), done()])
        shop.run(engine)
        assert shop.status() is state
        assert shop.artifacts() == {}

    def test_a_cancelled_job_is_not_tried_again_after_a_crash(self, shop: Shop):
        shop.run(ScriptedEngine([*BEGIN, shop.asks(cancel), DIED]))
        assert shop.status() is JobStatus.CANCELLED

    def test_cancel_is_heard_while_the_store_is_away(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        ask = shop.asks(cancel)

        def fail(*_: object) -> object:
            if shop.status() is JobStatus.TRAINING:
                ask(engine)
            raise ArtifactStorageError("away")

        engine = ScriptedEngine([*BEGIN, done()])
        monkeypatch.setattr(shop.storage, "put", fail)
        shop.run(engine)
        assert shop.status() is JobStatus.CANCELLED

    def test_a_worker_that_ends_hands_the_job_back_before_it_starts(self, shop: Shop):
        shop.stopping.set()
        shop.run(ScriptedEngine())
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)


class TestLease:
    def test_a_job_that_is_anothers_is_left_alone(self, shop: Shop):
        def take_over(_: ScriptedEngine) -> None:
            with shop.database.write() as session:
                session.execute(sa.update(Job).values(fence=Job.fence + 1, worker_id="worker-2"))

        engine = ScriptedEngine([*BEGIN, step(1), take_over, done(b"late")])
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.worker_id) == (JobStatus.TRAINING, "worker-2")
        assert shop.artifacts() == {}
        assert engine.kills == 1

    def test_is_renewed_while_the_engine_is_silent(self, shop: Shop):
        before = shop.row().lease_until
        seen: set[object] = set()

        def is_renewed() -> bool:
            seen.add(shop.row().lease_until)
            return len(seen) > 3

        shop.run(ScriptedEngine([SELECTED, Until(is_renewed), done()]))
        assert before is None
        assert shop.status() is JobStatus.SUCCEEDED


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


class TestStrangers:
    def test_what_an_earlier_run_still_says_is_not_heard(self, shop: Shop):
        late = replace(step(3), run="job_other.1.1")
        wrong = replace(failed("dataset_invalid", text="another's"), run="job_other.1.1")
        shop.run(ScriptedEngine([*BEGIN, late, wrong, step(1), done()]))
        assert shop.status() is JobStatus.SUCCEEDED
        assert [number for kind, number in shop.events() if kind == "step"] == [1]

    def test_what_nobody_foresaw_ends_the_engine_too(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object) -> None:
            raise sa.exc.DataError("UPDATE", {}, Exception("odd"))

        engine = ScriptedEngine([*BEGIN, step(1), done()])
        monkeypatch.setattr(Lease, "succeed", lambda *_, **__: fail())
        with pytest.raises(sa.exc.DataError):
            shop.run(engine)
        assert engine.kills == 1


class TestUnfit:
    def test_a_broken_engine_is_not_the_jobs_fault(self, shop: Shop):
        engine = ScriptedEngine()
        engine.is_ready = False
        engine.say_before_ready(DIED)
        with pytest.raises(UnfitError, match="engine"):
            shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)

    def test_nor_is_a_broken_disk(self, shop: Shop):
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

        def hang(*_: object, **__: object) -> None:
            shop.stopping.set()
            time.sleep(1)

        monkeypatch.setattr(shop.storage, "fetch", hang)
        shop.run(ScriptedEngine())
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)

    def test_a_worker_that_ends_while_a_model_loads_hands_back_at_once(self, shop: Shop):
        def end(_: ScriptedEngine) -> None:
            shop.stopping.set()

        engine = ScriptedEngine([end, *[NOTHING] * 1000])
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt, engine.kills) == (JobStatus.QUEUED, 1, 1)
