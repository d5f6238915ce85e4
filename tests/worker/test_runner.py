"""worker.runner: a claimed job through engine messages, stop requests and outages of the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.errors import ArtifactStorageError
from store.jobs.actions import cancel, pause
from store.jobs.leases import Lease
from store.states import JobStatus
from store.storage.space import used_bytes
from store.storage.unnamed import remove_unnamed
from store.tables import Job, JobEvent
from tests.worker.scripted_engine import (
    BEGIN,
    NOTHING,
    RESULT,
    SELECTED,
    ScriptedEngine,
    Until,
    checkpoint,
    done,
    event,
    failed,
    step,
    stopped,
)
from tests.worker.shop import DIED, Shop

if TYPE_CHECKING:
    from store.storage import Blob


class TestSuccess:
    def test_stores_the_engines_messages(self, shop: Shop):
        metrics = event("evaluated", step=4, total_steps=4, metrics={"accuracy": 0.5})
        finished = event("finished", step=4, total_steps=4)
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

    def test_stores_and_reports_the_warnings(self, shop: Shop):
        warnings = [
            {"code": "rare_classes", "message": "one row of 'a'", "param": "task.label"},
            {"code": "task_head_replaced", "message": "a new head", "param": "model"},
        ]
        loaded = event("loaded", text="classification", warnings=warnings)
        shop.run(ScriptedEngine([loaded, *BEGIN[1:], done()]))
        assert shop.row().warnings == warnings
        assert shop.warnings() == ["one row of 'a'", "a new head"]
        assert [number for kind, number in shop.events() if kind == "warning"] == [0, 1]

    def test_warnings_of_the_end_are_added_and_none_is_reported_twice(self, shop: Shop):
        warnings = [
            {"code": "rare_classes", "message": "one row of 'a'", "param": "task.label"},
            {"code": "one_class", "message": "one class", "param": "training.learning_rate"},
        ]
        loaded = event("loaded", text="classification", warnings=warnings[:1])
        finished = event("finished", step=2, total_steps=2, warnings=warnings)
        shop.run(ScriptedEngine([loaded, *BEGIN[1:], step(1), finished, done()]))
        assert shop.row().warnings == warnings
        assert shop.warnings() == ["one row of 'a'", "one class"]

    def test_reports_the_test_split(self, shop: Shop):
        tested = event("tested", step=4, total_steps=4, text="test f1", metrics={"f1": 0.5})
        shop.run(ScriptedEngine([*BEGIN, step(1), tested, done()]))
        assert ("test", 4) in shop.events()
        with shop.database.read() as session:
            query = sa.select(JobEvent).where(JobEvent.type == "test")
            row = session.scalars(query).one()
            assert (row.message, row.data) == ("test f1", {"f1": 0.5})

    def test_reports_the_yardsticks(self, shop: Shop):
        yardsticks = {"majority": {"f1": 0.0}, "probe": {"f1": 0.5}}
        probing = event("probing", step=1, total_steps=3)
        compared = event("yardsticks", text="from the probe", yardsticks=yardsticks)
        seen: list[str | None] = []
        kept = Until(lambda: shop.row().phase == "probing")
        look = [kept, lambda _: seen.append(shop.row().phase)]
        shop.run(ScriptedEngine([BEGIN[0], probing, *look, compared, *BEGIN[1:], done()]))
        assert seen == ["probing"]
        assert ("yardsticks", 0) in shop.events()

    def test_the_engine_gets_the_files_the_spec_and_the_settings(self, shop: Shop):
        shop.settings = shop.settings.model_copy(update={"state_memory_bytes": 7})
        read: list[bytes] = []
        engine = ScriptedEngine(
            [
                lambda it: read.append(Path(it.job.data["train"]).read_bytes()),
                SELECTED,
                done(),
            ]
        )
        shop.run(engine)
        assert read == [b"rows"]
        assert (engine.job.model, engine.job.spec.k) == ("/models/minilm", 1)
        assert engine.job.checkpoint_seconds == shop.settings.checkpoint_seconds
        assert engine.job.state_memory_bytes == 7


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

    def test_of_another_worker_are_resumed(self, shop: Shop):
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
        assert first.stop_requests == ["pause"]
        shop.stopping.clear()
        found: list[bytes] = []

        def look(it: ScriptedEngine) -> None:
            folder = Path(it.job.checkpoints)
            found.extend(path.read_bytes() for path in folder.glob("step-00000001/*"))

        second = ScriptedEngine([look, event("resumed", step=1), *map(step, range(1, 5)), done()])
        shop.run(second)
        assert found == [b"one"]
        assert shop.status() is JobStatus.SUCCEEDED
        steps = [number for kind, number in shop.events() if kind == "step"]
        assert steps == [1, 2, 3, 4]

    def test_are_removed_when_the_job_has_ended(self, shop: Shop):
        kept = Until(lambda: shop.row().checkpoint is not None)
        last = checkpoint(2, b"the last one")  # which nobody waits for
        shop.run(ScriptedEngine([*BEGIN, checkpoint(1, b"one"), kept, last, done()]))
        remove_unnamed(shop.database, shop.storage)
        blobs = [(blob.tenant_id, blob.sha256) for blob in shop.storage.list()]
        sizes = [len(b"".join(shop.storage.read(*blob))) for blob in blobs]
        assert len(sizes) == 1 + len(shop.artifacts())  # the data set's, and these
        with shop.database.read() as session:
            assert used_bytes(session, shop.tenant) == sum(sizes)

    def test_a_lost_one_is_ignored(self, shop: Shop):
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
            left.extend(Path(it.job.checkpoints).iterdir())

        shop.run(ScriptedEngine([look, *BEGIN, DIED], [*BEGIN, *map(step, range(1, 5)), done()]))
        assert left == []
        assert shop.status() is JobStatus.SUCCEEDED
        assert [number for kind, number in shop.events() if kind == "step"] == [1, 2, 3, 4]
        assert len([text for text in shop.warnings() if "is missing" in text]) == 1

    def test_a_removed_one_is_skipped(self, shop: Shop):
        gone = event("checkpoint", step=1, total_steps=4, checkpoint=["/nowhere/step-00000001/x"])
        engine = ScriptedEngine([*BEGIN, gone, done()])
        shop.run(engine)
        assert shop.status() is JobStatus.SUCCEEDED

    def test_a_failed_store_is_retried(self, shop: Shop, monkeypatch: pytest.MonkeyPatch):
        put, failures = shop.storage.put, iter([1, 1, 1])

        def fail(tenant_id: str, file: Path, *, blob: Blob) -> object:
            if next(failures, None):
                raise ArtifactStorageError("the artifact store is full")
            return put(tenant_id, file, blob=blob)

        monkeypatch.setattr(shop.storage, "put", fail)

        kept = Until(lambda: shop.row().checkpoint is not None)
        shop.run(ScriptedEngine([*BEGIN, checkpoint(1, b"x"), kept, done()]))
        assert shop.status() is JobStatus.SUCCEEDED

    def test_a_damaged_one_is_dropped_and_the_job_restarts(self, shop: Shop):
        left: list[Path] = []
        broken = failed("checkpoint_invalid", text="damaged", is_lasting=False)
        engine = ScriptedEngine(
            [*BEGIN, checkpoint(1, b"x"), broken],
            [
                lambda it: left.extend(Path(it.job.checkpoints).iterdir()),
                done(),
            ],
        )
        shop.run(engine)
        assert left == []
        assert shop.status() is JobStatus.SUCCEEDED


class TestWishes:
    def test_cancel_reaches_the_engine_and_ends_the_job(self, shop: Shop):
        noticed = Until(lambda: engine.stop_requests)
        engine = ScriptedEngine([*BEGIN, step(1), shop.asks(cancel), noticed, stopped("cancel")])
        shop.run(engine)
        assert engine.stop_requests == ["cancel"]
        assert shop.status() is JobStatus.CANCELLED

    def test_pause_keeps_the_checkpoint(self, shop: Shop):
        engine = ScriptedEngine(
            [
                *BEGIN,
                step(1),
                shop.asks(pause),
                Until(lambda: engine.stop_requests),
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
                Until(lambda: engine.stop_requests == ["pause"]),
                shop.asks(cancel),
                Until(lambda: engine.stop_requests == ["pause", "cancel"]),
                stopped("pause"),
            ]
        )
        shop.run(engine)
        assert engine.stop_requests == ["pause", "cancel"]
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

    def test_cancel_works_while_the_store_is_away(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        ask = shop.asks(cancel)

        def fail(*_: object, **__: object) -> object:
            if shop.status() is JobStatus.TRAINING:
                ask(engine)
            raise ArtifactStorageError("away")

        engine = ScriptedEngine([*BEGIN, done()])
        monkeypatch.setattr(shop.storage, "put", fail)
        shop.run(engine)
        assert shop.status() is JobStatus.CANCELLED

    def test_a_stopping_worker_hands_an_unstarted_job_back(self, shop: Shop):
        shop.stopping.set()
        shop.run(ScriptedEngine())
        row = shop.row()
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)


class TestLease:
    def test_another_workers_job_is_left_alone(self, shop: Shop):
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


class TestStrangers:
    def test_messages_of_an_earlier_run_are_ignored(self, shop: Shop):
        late = replace(step(3), run="job_other.1.1")
        wrong = replace(failed("dataset_invalid", text="another's"), run="job_other.1.1")
        shop.run(ScriptedEngine([*BEGIN, late, wrong, step(1), done()]))
        assert shop.status() is JobStatus.SUCCEEDED
        assert [number for kind, number in shop.events() if kind == "step"] == [1]

    def test_an_unexpected_error_kills_the_engine(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object) -> None:
            raise sa.exc.DataError("UPDATE", {}, Exception("odd"))

        engine = ScriptedEngine([*BEGIN, step(1), done()])
        monkeypatch.setattr(Lease, "succeed", lambda *_, **__: fail())
        with pytest.raises(sa.exc.DataError):
            shop.run(engine)
        assert engine.kills == 1
