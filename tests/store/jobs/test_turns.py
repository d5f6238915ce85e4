"""store.jobs.turns: one job makes room for a tenant that waits, and only for one that has fewer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now
from store.jobs.claims import Claimant
from store.jobs.leases import Lease
from store.jobs.turns import is_turn_over
from store.jobs.workers import register
from store.states import JobStatus
from store.tables import Job, JobEvent, Worker
from tests.store.queues import add_job, add_tenant, claim

if TYPE_CHECKING:
    from store.database.connection import Database

TURN = 300.0
MINUTE = 60.0


class Fleet:
    """Workers with one backbone each, on a clock that a test moves: all times are set back."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.workers: dict[str, Claimant] = {}
        self.leases: dict[str, tuple[str, Lease]] = {}  # by worker: its job

    def add(self, name: str, *, backbone: str = "minilm") -> None:
        register(
            self.database, worker_id=name, device="cpu", backbones=[backbone], allows_hub=False
        )
        self.workers[name] = Claimant(worker_id=name, backbones=frozenset({backbone}))

    def take(self, name: str) -> str:
        """Let a worker claim a job and train; return the job's tenant."""
        job = claim(self.database, self.workers[name])
        assert job is not None
        lease = Lease(self.database, job.id, fence=job.fence, seconds=60)
        lease.advance(JobStatus.TRAINING, message="training")
        self.leases[name] = job.id, lease
        return job.tenant_id

    def wait(self, seconds: float) -> None:
        """Let time pass for the claims and the queue; the workers stay alive."""
        with self.database.write() as session:
            for job in session.scalars(sa.select(Job)).all():
                if job.claimed_at is not None:
                    job.claimed_at -= timedelta(seconds=seconds)
            for event in session.scalars(sa.select(JobEvent)).all():
                event.created_at -= timedelta(seconds=seconds)

    def yielding(self) -> list[str]:
        """Return the workers whose job has to make room now."""
        return [
            name
            for name, (job_id, _) in self.leases.items()
            if is_turn_over(
                self.database,
                self.workers[name],
                job_id,
                turn_seconds=TURN,
                max_running=100,
            )
        ]

    def make_room(self) -> str | None:
        """Let the worker that has to make room do so and claim; return the tenant that it runs."""
        names = self.yielding()
        assert len(names) <= 1, "the workers agree on one job"
        if not names:
            return None
        _, lease = self.leases.pop(names[0])
        assert lease.end_turn(message="its turn is over") is JobStatus.QUEUED
        return self.take(names[0])

    def running(self, *tenants: str) -> list[int]:
        with self.database.read() as session:
            rows = session.scalars(sa.select(Job.tenant_id).where(Job.worker_id.is_not(None))).all()
        return [rows.count(tenant) for tenant in tenants]


def fleet_of(database: Database, workers: int) -> Fleet:
    fleet = Fleet(database)
    for number in range(workers):
        fleet.add(f"w{number}")
    return fleet


def test_nobody_makes_room_for_nobody(database: Database):
    fleet = fleet_of(database, 1)
    tenant = add_tenant(database, "a")
    for _ in range(3):
        add_job(database, tenant)
    fleet.take("w0")
    fleet.wait(10 * TURN)
    assert fleet.yielding() == []


def test_a_job_makes_room_after_its_turn(database: Database):
    fleet = fleet_of(database, 1)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    for _ in range(3):
        add_job(database, long)
    assert fleet.take("w0") == long
    fleet.wait(TURN + 1)
    assert fleet.yielding() == []
    add_job(database, small)
    assert fleet.make_room() == small


def test_an_idle_worker_is_given_time_to_claim(database: Database):
    fleet = fleet_of(database, 2)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    add_job(database, long)
    fleet.take("w0")
    fleet.wait(TURN + 1)
    add_job(database, small)
    assert fleet.yielding() == []
    fleet.wait(MINUTE)  # it does not claim: it is broken
    assert fleet.yielding() == ["w0"]


def test_a_tenant_that_posts_and_cancels_all_the_time_keeps_no_other_waiting(database: Database):
    fleet = fleet_of(database, 1)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    add_job(database, long)
    fleet.take("w0")
    fleet.wait(TURN + 1)
    add_job(database, small)
    fleet.wait(MINUTE)
    add_job(database, add_tenant(database, "restless"))  # first in turn, and always new
    assert fleet.yielding() == ["w0"]


def test_a_job_keeps_its_worker_until_its_turn_is_over(database: Database):
    fleet = fleet_of(database, 1)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    add_job(database, long)
    fleet.take("w0")
    add_job(database, small)
    fleet.wait(TURN - 1)
    assert fleet.yielding() == []


def test_with_one_worker_three_tenants_take_turns(database: Database):
    fleet = fleet_of(database, 1)
    tenants = [add_tenant(database, name) for name in "abc"]
    for tenant in tenants:
        for _ in range(2):
            add_job(database, tenant)
    seen = [fleet.take("w0")]
    for _ in range(8):
        fleet.wait(TURN + 1)
        seen.append(fleet.make_room() or "nobody")
    assert sorted(seen[:3]) == sorted(tenants)
    assert seen == seen[:3] * 3


def test_a_handed_back_job_continues_before_its_tenants_others(database: Database):
    fleet = fleet_of(database, 1)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    first = add_job(database, long)
    add_job(database, long)
    fleet.take("w0")
    add_job(database, small)
    fleet.wait(TURN + 1)
    assert fleet.make_room() == small
    fleet.wait(TURN + 1)
    assert fleet.make_room() == long
    assert fleet.leases["w0"][0] == first
    with database.read() as session:
        assert session.scalars(sa.select(Job.attempt).where(Job.id == first)).one() == 1


def test_many_workers_are_shared_evenly_and_then_stay(database: Database):
    fleet = fleet_of(database, 7)
    big, small = add_tenant(database, "big"), add_tenant(database, "small")
    for _ in range(20):
        add_job(database, big)
    for name in fleet.workers:
        fleet.take(name)
    for _ in range(20):
        add_job(database, small)
    moves = 0
    for _ in range(20):
        fleet.wait(TURN + 1)
        moves += fleet.make_room() is not None
    assert fleet.running(big, small) == [4, 3]
    assert moves == 3


def test_only_a_worker_that_can_run_the_waiting_job_makes_room(database: Database):
    fleet = Fleet(database)
    fleet.add("other", backbone="llama")
    fleet.add("fit")
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    add_job(database, long, model="llama")
    add_job(database, long)
    fleet.take("other")  # the older claim
    fleet.take("fit")
    add_job(database, small)
    fleet.wait(TURN + 1)
    assert fleet.yielding() == ["fit"]


def test_a_worker_that_is_away_is_not_waited_for(database: Database):
    fleet = fleet_of(database, 2)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    for _ in range(2):
        add_job(database, long)
    fleet.take("w0")
    fleet.take("w1")
    add_job(database, small)
    fleet.wait(TURN + 1)
    assert fleet.yielding() == ["w0"]
    with database.write() as session:
        past = database_now(session) - timedelta(minutes=1)
        session.execute(sa.update(Worker).where(Worker.id == "w0").values(seen_at=past))
    assert fleet.yielding() == ["w1"]


def test_a_tenant_at_its_quota_takes_no_room(database: Database):
    fleet = fleet_of(database, 3)
    long, small = add_tenant(database, "long"), add_tenant(database, "small", max_running=0)
    for _ in range(3):
        add_job(database, long)
    for name in fleet.workers:
        fleet.take(name)
    add_job(database, small)
    fleet.wait(TURN + 1)
    assert fleet.yielding() == []


def test_a_job_that_does_not_train_yet_has_nothing_to_keep(database: Database):
    fleet = fleet_of(database, 1)
    long, small = add_tenant(database, "long"), add_tenant(database, "small")
    add_job(database, long)
    job = claim(database, fleet.workers["w0"])
    assert job is not None
    fleet.leases["w0"] = job.id, Lease(database, job.id, fence=job.fence, seconds=60)
    add_job(database, small)
    fleet.wait(TURN + 1)
    assert fleet.yielding() == []
