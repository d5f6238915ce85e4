"""worker.clock and the runner: a job's longest time, and its turn."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from store.jobs.workers import register
from store.states import JobStatus
from store.tables import Job, JobEvent, Tenant
from tests.store.queues import add_job, add_tenant, claimed
from tests.worker.scripted_engine import (
    BEGIN,
    NOTHING,
    ScriptedEngine,
    Until,
    checkpoint,
    done,
    event,
    failed,
    step,
    stopped,
)
from tests.worker.shop import SPEC, Shop
from worker import clock
from worker.engine.messages import TIME_LIMIT_EXCEEDED

TIMED_OUT = failed(TIME_LIMIT_EXCEEDED, text="max_seconds ran out")


def change(shop: Shop, **columns: object) -> None:
    with shop.database.write() as session:
        session.execute(sa.update(Job).where(Job.id == shop.job).values(**columns))


def limit(shop: Shop, seconds: float) -> None:
    training = {**SPEC["training"], "max_seconds": seconds}
    change(shop, spec={**SPEC, "dataset": shop.dataset, "training": training})


class TestLimit:
    def test_the_engine_gets_what_is_left_after_earlier_claims(self, shop: Shop):
        limit(shop, 100.0)
        change(shop, ran_seconds=60.0)
        engine = ScriptedEngine([*BEGIN, step(1), done()])
        shop.run(engine)
        assert 30 < engine.job.max_seconds <= 40
        assert shop.status() is JobStatus.SUCCEEDED

    def test_the_servers_holds_if_it_is_shorter(self, shop: Shop):
        shop.settings = shop.settings.model_copy(update={"job_max_seconds": 50.0})
        limit(shop, 100.0)
        engine = ScriptedEngine([*BEGIN, TIMED_OUT])
        shop.run(engine)
        assert engine.job.max_seconds <= 50
        error = shop.row().error
        assert (error["code"], error["param"]) == ("time_limit_exceeded", None)
        assert "the server's HIFI_JOB_MAX_SECONDS allows 50:" in error["message"]

    def test_a_job_that_the_engine_stops_fails_with_what_it_reached(self, shop: Shop):
        limit(shop, 100.0)
        change(shop, ran_seconds=99.0)
        shop.run(ScriptedEngine([*BEGIN, step(1), step(2), checkpoint(2, b"state"), TIMED_OUT]))
        row = shop.row()
        assert (row.status, row.checkpoint) == (JobStatus.FAILED, None)
        assert row.error["code"] == "time_limit_exceeded"
        assert row.error["param"] == "training.max_seconds"
        assert "its training.max_seconds allows 100:" in row.error["message"]
        assert "after step 2 of 4" in row.error["message"]
        assert shop.artifacts() == {}

    def test_a_job_without_time_left_does_not_start(self, shop: Shop):
        limit(shop, 100.0)
        change(shop, ran_seconds=100.0)
        engine = ScriptedEngine()
        shop.run(engine)
        assert engine.sent == []
        assert shop.row().error["code"] == "time_limit_exceeded"
        assert "before its first step" in shop.row().error["message"]

    @pytest.mark.parametrize("begun", [[], [*BEGIN, step(1)]])
    def test_an_engine_that_does_not_answer_is_killed(
        self, shop: Shop, begun: list, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(clock, "_ANSWER_SECONDS", 0.05)
        limit(shop, 0.2)
        engine = ScriptedEngine([*begun, Until(lambda: False)])
        shop.run(engine)
        assert engine.kills == 1
        assert shop.row().error["code"] == "time_limit_exceeded"

    def test_time_is_counted_over_claims_and_not_in_the_queue(self, shop: Shop):
        def hand_back(_: ScriptedEngine) -> None:
            shop.stopping.set()

        shop.run(ScriptedEngine([*BEGIN, step(1), hand_back, NOTHING, stopped("pause")]))
        first = shop.row().ran_seconds
        assert first > 0
        assert shop.row().ran_seconds == first  # nobody runs it
        shop.stopping.clear()
        shop.run(ScriptedEngine([*BEGIN, step(1), done()]))
        assert shop.row().ran_seconds > first


class TestTurn:
    @pytest.fixture
    def waiting(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> str:
        """Let another tenant's job wait; turns are short. Return the tenant."""
        monkeypatch.setattr(clock, "_ASK_SECONDS", 0.01)
        shop.settings = shop.settings.model_copy(update={"turn_seconds": 0.05})
        register(
            shop.database,
            worker_id="worker-1",
            device="cpu",
            backbones=["minilm"],
            allows_hub=False,
        )
        tenant = add_tenant(shop.database, "other")
        with shop.database.write() as session:  # or it would be first in turn
            session.execute(
                sa.update(Tenant)
                .where(Tenant.id == tenant)
                .values(last_claim_at=sa.func.clock_timestamp())
            )
        return tenant

    def wait(self, shop: Shop, tenant: str) -> None:
        add_job(shop.database, tenant)
        with shop.database.write() as session:
            for each in session.scalars(sa.select(JobEvent)).all():
                each.created_at -= timedelta(minutes=1)

    def test_over_hands_the_job_back_and_the_next_tenant_is_served(self, shop: Shop, waiting: str):
        is_told = Until(lambda: engine.stop_requests)
        engine = ScriptedEngine(
            [
                *BEGIN,
                lambda _: self.wait(shop, waiting),
                step(1),
                is_told,
                checkpoint(1, b"one"),
                stopped("pause"),
            ]
        )
        shop.run(engine)
        row = shop.row()
        assert (row.status, row.attempt, row.claimed_at) == (JobStatus.QUEUED, 1, None)
        assert row.checkpoint["step"] == 1
        assert claimed(shop.database)[0].tenant_id == waiting
        assert claimed(shop.database)[0].id == shop.job

    def test_goes_on_until_there_is_a_new_step_to_keep(self, shop: Shop, waiting: str):
        self.wait(shop, waiting)
        with shop.database.write() as session:  # the job is claimed first all the same
            session.execute(sa.update(Tenant).values(last_claim_at=None))
            session.execute(
                sa.update(Tenant)
                .where(Tenant.id == waiting)
                .values(last_claim_at=sa.func.clock_timestamp())
            )
        beats = iter(range(100))
        quiet = Until(lambda: next(beats, None) is None)
        engine = ScriptedEngine([*BEGIN, quiet, event("resumed", step=0), quiet, done()])
        shop.run(engine)
        assert engine.stop_requests == []
        assert shop.status() is JobStatus.SUCCEEDED

    def test_without_anybody_waiting_never_ends(self, shop: Shop, waiting: str):
        assert waiting
        beats = iter(range(100))
        engine = ScriptedEngine(
            [*BEGIN, step(1), Until(lambda: next(beats, None) is None), step(2), done()]
        )
        shop.run(engine)
        assert engine.stop_requests == []
        assert shop.status() is JobStatus.SUCCEEDED
