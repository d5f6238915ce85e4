"""store.jobs.leases: only the holder of the newest fence may write."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.database.connection import database_now
from store.errors import IllegalTransitionError, LeaseLostError
from store.jobs import leases
from store.jobs.actions import cancel, get_job, list_artifacts, list_events, pause
from store.jobs.leases import Lease, Progress
from store.jobs.life import WorkEvent
from store.jobs.reconciler import take_back_expired
from store.states import JobStatus
from store.storage import Blob
from store.tables import Job, Tenant
from store.tenants import lock_tenant
from tests.store.queues import add_job, add_tenant, claimed, wait_for_a_waiting_transaction

if TYPE_CHECKING:
    from store.database.connection import Database

BLOB = Blob(sha256="0" * 64, bytes=10)


@pytest.fixture
def tenant(database: Database) -> str:
    return add_tenant(database, "a")


def training(database: Database, tenant: str) -> tuple[str, Lease]:
    add_job(database, tenant)
    job, lease = claimed(database)
    lease.advance(JobStatus.TRAINING, message="training")
    return job.id, lease


def load(database: Database, tenant: str, job_id: str) -> Job:
    with database.read() as session:
        return get_job(session, tenant, job_id, with_heads=True)


def messages(database: Database, job: Job) -> list[tuple[int, str]]:
    with database.read() as session:
        events, _ = list_events(session, job, limit=100)
        return [(event.number, event.message) for event in events]


class TestWarnings:
    def test_of_the_worker_replace_those_of_the_gateway(self, database, tenant):
        known = {"code": "many_classes", "message": "many", "param": "task.label"}
        add_job(database, tenant, warnings=[known])
        job, lease = claimed(database)
        assert load(database, tenant, job.id).warnings == [known]
        found = [known, {"code": "task_head_replaced", "message": "new", "param": "model"}]
        lease.keep_warnings(found)
        assert load(database, tenant, job.id).warnings == found
        lease.keep_warnings([])
        assert load(database, tenant, job.id).warnings == []


class TestReport:
    def test_writes_progress_and_events_and_renews_the_lease(self, database, tenant):
        job_id, lease = training(database, tenant)
        before = load(database, tenant, job_id).lease_until
        event = WorkEvent(type="step", message="step 1", step=1, data={"loss": 0.5})
        progress = Progress(phase="training", step=1, total_steps=9, eta_seconds=4.5)
        assert lease.report(progress, events=[event]) is JobStatus.TRAINING
        job = load(database, tenant, job_id)
        assert (job.phase, job.step, job.total_steps, job.eta_seconds) == ("training", 1, 9, 4.5)
        assert job.lease_until > before
        assert messages(database, job)[-1] == (job.last_event, "step 1")

    def test_keeps_fields_that_are_not_reported(self, database, tenant):
        job_id, lease = training(database, tenant)
        lease.report(Progress(phase="training", step=1))
        lease.report(Progress(step=2))
        job = load(database, tenant, job_id)
        assert (job.phase, job.step) == ("training", 2)

    def test_repeats_no_step(self, database, tenant):
        job_id, lease = training(database, tenant)
        events = [WorkEvent(type="step", message=f"step {step}", step=step) for step in (1, 2)]
        for again in (events, events, [*events, WorkEvent(type="evaluated", message="e", step=2)]):
            lease.report(Progress(), events=again)
        told = messages(database, load(database, tenant, job_id))
        assert [text for _, text in told[-3:]] == ["step 1", "step 2", "e"]
        assert [number for number, _ in told] == list(range(1, len(told) + 1))

    @pytest.mark.parametrize(
        ("ask", "status"), [(cancel, JobStatus.CANCELLING), (pause, JobStatus.PAUSING)]
    )
    def test_returns_the_owners_stop_request(self, database, tenant, ask: Callable, status):
        job_id, lease = training(database, tenant)
        with database.write() as session:
            ask(session, tenant, job_id)
        assert lease.report(Progress(step=1)) is status


class TestEnds:
    def test_success_stores_the_artifacts(self, database, tenant):
        job_id, lease = training(database, tenant)
        lease.keep_checkpoint(step=5, files={"state.json": BLOB})
        result = {"metrics": {"f1": 0.9}}
        assert lease.succeed(result=result, artifacts={"int8": BLOB}) is JobStatus.SUCCEEDED
        job = load(database, tenant, job_id)
        assert (job.status, job.result, job.checkpoint) == (JobStatus.SUCCEEDED, result, None)
        assert job.worker_id is job.lease_until is None
        assert job.finished_at is not None
        with database.read() as session:
            (artifact,) = list_artifacts(session, job)
        assert (artifact.encoding, artifact.sha256, artifact.bytes) == ("int8", BLOB.sha256, 10)

    def test_success_does_not_hold_the_job_while_it_waits_for_the_tenant(self, database, tenant):
        """The one that deletes the tenant holds that, and then cancels the job."""
        job_id, lease = training(database, tenant)
        with ThreadPoolExecutor(1) as pool:
            with database.write() as session:
                lock_tenant(session, tenant)
                ending = pool.submit(lease.succeed, result={}, artifacts={"float32": BLOB})
                wait_for_a_waiting_transaction(database)
                cancel(session, tenant, job_id)
            assert ending.result() is JobStatus.CANCELLED

    def test_failure_says_why(self, database, tenant):
        job_id, lease = training(database, tenant)
        lease.fail(code="out_of_memory", message="take a smaller batch", param="training")
        job = load(database, tenant, job_id)
        assert job.status is JobStatus.FAILED
        assert job.error == {
            "code": "out_of_memory",
            "message": "take a smaller batch",
            "param": "training",
        }

    @pytest.mark.parametrize(
        ("end", "status"),
        [
            (lambda lease: lease.succeed(result={}, artifacts={"int8": BLOB}), "cancelled"),
            (lambda lease: lease.fail(code="x", message="x"), "cancelled"),
            (lambda lease: lease.hand_back(message="x"), "cancelled"),
            (lambda lease: lease.stop(), "cancelled"),
        ],
    )
    def test_a_job_that_is_to_be_cancelled_is_however_it_ends(self, database, tenant, end, status):
        job_id, lease = training(database, tenant)
        with database.write() as session:
            cancel(session, tenant, job_id)
        assert end(lease) == status
        job = load(database, tenant, job_id)
        assert (job.status, job.error, job.result) == (status, None, None)
        with database.read() as session:
            assert not list_artifacts(session, job)

    @pytest.mark.parametrize(
        "end",
        [
            lambda lease: lease.succeed(result={}, artifacts={"int8": BLOB}),
            lambda lease: lease.hand_back(message="x"),
            lambda lease: lease.stop(),
        ],
    )
    def test_a_job_that_is_to_pause_does_with_its_checkpoint(self, database, tenant, end):
        job_id, lease = training(database, tenant)
        lease.keep_checkpoint(step=5, files={"state.json": BLOB})
        with database.write() as session:
            pause(session, tenant, job_id)
        assert end(lease) is JobStatus.PAUSED
        entry = {"bytes": 10, "sha256": BLOB.sha256}
        job = load(database, tenant, job_id)
        assert job.checkpoint == {"step": 5, "files": {"state.json": entry}}

    def test_stopping_unasked_is_refused(self, database, tenant):
        _, lease = training(database, tenant)
        with pytest.raises(IllegalTransitionError):
            lease.stop()

    def test_a_job_handed_back_is_claimed_again_where_it_was(self, database, tenant):
        job_id, lease = training(database, tenant)
        add_job(database, tenant)
        lease.keep_checkpoint(step=5, files={})
        assert lease.hand_back(message="the worker shuts down") is JobStatus.QUEUED
        job, _ = claimed(database)
        assert (job.id, job.fence, job.attempt) == (job_id, 2, 1)
        assert job.checkpoint == {"step": 5, "files": {}}


class TestFence:
    def test_an_older_claim_can_write_nothing(self, database, tenant):
        job_id, old = training(database, tenant)
        old.hand_back(message="x")
        claimed(database)
        before = load(database, tenant, job_id)
        writes: list[Callable[[], object]] = [
            lambda: old.report(Progress(step=7), events=[WorkEvent(type="step", message="late")]),
            lambda: old.advance(JobStatus.TRAINING, message="late"),
            lambda: old.keep_selection(selection={}, heads={}),
            lambda: old.keep_checkpoint(step=9, files={}),
            lambda: old.succeed(result={"late": True}, artifacts={"int8": BLOB}),
            lambda: old.fail(code="late", message="late"),
            lambda: old.count_crash(code="late", message="late"),
            old.stop,
            lambda: old.hand_back(message="late"),
        ]
        for write in writes:
            with pytest.raises(LeaseLostError, match=job_id):
                write()
        after = load(database, tenant, job_id)
        for column in (attribute.key for attribute in sa.inspect(Job).column_attrs):
            assert getattr(after, column) == getattr(before, column), column

    def test_nothing_can_be_written_after_the_end(self, database, tenant):
        _, lease = training(database, tenant)
        lease.succeed(result={}, artifacts={})
        with pytest.raises(LeaseLostError):
            lease.report(Progress(step=1))


class TestAdvance:
    def test_goes_on_phase_by_phase(self, database, tenant):
        add_job(database, tenant)
        job, lease = claimed(database)
        for phase in (JobStatus.SELECTING, JobStatus.TRAINING):
            assert lease.advance(phase, message=f"now {phase}") is phase
        told = messages(database, load(database, tenant, job.id))
        assert [text for _, text in told[-2:]] == ["now selecting", "now training"]

    @pytest.mark.parametrize("phase", ["validating", "selecting", "training"])
    def test_a_job_that_is_as_far_stays_quietly_where_it_is(self, database, tenant, phase):
        job_id, lease = training(database, tenant)
        before = load(database, tenant, job_id)
        assert lease.advance(JobStatus(phase), message="again") is JobStatus.TRAINING
        after = load(database, tenant, job_id)
        assert after.last_event == before.last_event
        assert after.lease_until > before.lease_until

    def test_one_that_is_to_stop_stays_where_it_is(self, database, tenant):
        add_job(database, tenant)
        job, lease = claimed(database)
        with database.write() as session:
            cancel(session, tenant, job.id)
        assert lease.advance(JobStatus.SELECTING, message="x") is JobStatus.CANCELLING

    def test_an_unknown_phase_is_refused(self, database, tenant):
        _, lease = training(database, tenant)
        with pytest.raises(IllegalTransitionError):
            lease.advance(JobStatus.PAUSED, message="x")


class TestRenewal:
    @pytest.mark.parametrize(
        "call",
        [
            lambda lease: lease.report(Progress(step=1)),
            lambda lease: lease.keep_selection(selection={}, heads={}),
            lambda lease: lease.keep_checkpoint(step=1, files={}),
            lambda lease: lease.count_crash(code="x", message="x"),
            lambda lease: lease.advance(JobStatus.TRAINING, message="x"),
        ],
    )
    def test_every_call_renews_the_lease(self, database, tenant, call):
        job_id, lease = training(database, tenant)
        with database.write() as session:
            soon = database_now(session) + timedelta(seconds=1)
            session.execute(sa.update(Job).values(lease_until=soon))
        call(lease)
        left = load(database, tenant, job_id).lease_until - soon
        assert left > timedelta(seconds=50)


class TestTime:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        clock = SimpleNamespace(now=100.0)
        monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: clock.now))
        return clock

    def test_is_added_up_with_every_call_and_over_claims(self, database, tenant, clock):
        job_id, lease = training(database, tenant)
        clock.now += 5
        lease.report(Progress(step=1))
        assert load(database, tenant, job_id).ran_seconds == 5
        clock.now += 2
        lease.hand_back(message="x")
        clock.now += 1000  # in the queue
        job, lease = claimed(database)
        assert job.ran_seconds == 7
        clock.now += 1
        lease.fail(code="x", message="x")
        assert load(database, tenant, job_id).ran_seconds == 8

    def test_of_a_lost_worker_counts_to_its_last_sign_of_life(self, database, tenant, clock):
        job_id, lease = training(database, tenant)
        clock.now += 5
        lease.report(Progress(step=1))
        clock.now += 9999
        with database.write() as session:
            past = database_now(session) - timedelta(seconds=1)
            session.execute(sa.update(Job).values(lease_until=past))
        take_back_expired(database, before=datetime.now(UTC))
        with pytest.raises(LeaseLostError):
            lease.report(Progress(step=2))
        assert load(database, tenant, job_id).ran_seconds == 5


class TestEndOfTurn:
    def test_puts_the_tenant_behind_those_that_wait(self, database, tenant):
        job_id, lease = training(database, tenant)
        other = add_tenant(database, "b")
        other_job = add_job(database, other)
        first, second = claimed(database)
        second.advance(JobStatus.TRAINING, message="")
        second.succeed(result={}, artifacts={})
        assert first.id == other_job
        add_job(database, other)  # its last claim is newer than that of the first tenant
        assert lease.end_turn(message="its turn is over") is JobStatus.QUEUED
        assert load(database, tenant, job_id).attempt == 1
        assert [claimed(database)[0].tenant_id for _ in range(2)] == [other, tenant]

    def test_stops_a_job_that_is_to_stop(self, database, tenant):
        job_id, lease = training(database, tenant)
        with database.write() as session:
            cancel(session, tenant, job_id)
        assert lease.end_turn(message="x") is JobStatus.CANCELLED

    def test_of_a_lost_job_changes_nothing(self, database, tenant):
        _, lease = training(database, tenant)
        with database.write() as session:
            session.execute(sa.update(Job).values(fence=Job.fence + 1))
            before = session.scalars(sa.select(Tenant.last_claim_at)).one()
        with pytest.raises(LeaseLostError):
            lease.end_turn(message="x")
        with database.read() as session:
            assert session.scalars(sa.select(Tenant.last_claim_at)).one() == before


class TestCrash:
    def test_counts_a_try_and_logs_it(self, database, tenant):
        job_id, lease = training(database, tenant)
        assert lease.count_crash(code="engine_crashed", message="it died") is JobStatus.TRAINING
        job = load(database, tenant, job_id)
        assert (job.status, job.attempt, job.error) == (JobStatus.TRAINING, 2, None)
        with database.read() as session:
            events, _ = list_events(session, job, limit=100)
        assert (events[-1].level, events[-1].data) == ("warn", {"code": "engine_crashed"})
        assert events[-1].message.startswith("it died")

    def test_the_last_try_fails_the_job_with_its_cause(self, database, tenant):
        job_id, lease = training(database, tenant)
        told = [lease.count_crash(code="engine_stalled", message="no step") for _ in range(3)]
        assert told == [JobStatus.TRAINING, JobStatus.TRAINING, JobStatus.FAILED]
        job = load(database, tenant, job_id)
        assert job.error["code"] == "engine_stalled"
        assert job.error["message"] == "3 attempts failed without a newer checkpoint: no step"

    def test_tries_and_lost_workers_are_counted_together(self, database, tenant):
        job_id, lease = training(database, tenant)
        lease.count_crash(code="engine_crashed", message="")
        with database.write() as session:
            past = database_now(session) - timedelta(seconds=1)
            session.execute(sa.update(Job).values(lease_until=past))
        take_back_expired(database, before=datetime.now(UTC))
        _, lease = claimed(database)
        assert lease.count_crash(code="engine_crashed", message="") is JobStatus.FAILED
        assert load(database, tenant, job_id).attempt == 3

    def test_a_newer_checkpoint_gives_new_tries(self, database, tenant):
        _, lease = training(database, tenant)
        for step in range(5):
            assert lease.count_crash(code="x", message="") is JobStatus.TRAINING
            lease.keep_checkpoint(step=step, files={})

    @pytest.mark.parametrize(("ask", "status"), [(cancel, "cancelled"), (pause, "paused")])
    def test_a_job_that_is_to_stop_is_stopped_instead(self, database, tenant, ask, status):
        job_id, lease = training(database, tenant)
        with database.write() as session:
            ask(session, tenant, job_id)
        assert lease.count_crash(code="x", message="x") == status
        assert load(database, tenant, job_id).attempt == 1


class TestCheckpoint:
    def test_a_newer_one_resets_the_tries(self, database, tenant):
        job_id, lease = training(database, tenant)
        for step, attempt in ((5, 1), (5, 2), (4, 2), (6, 1)):
            with database.write() as session:
                session.execute(sa.update(Job).values(attempt=2))
            lease.keep_checkpoint(step=step, files={})
            assert load(database, tenant, job_id).attempt == attempt
