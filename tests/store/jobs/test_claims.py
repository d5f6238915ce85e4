"""store.jobs.claims: every job once, fair by tenant, within quotas, to workers that can run it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.jobs.actions import cancel, get_job
from store.jobs.claims import Claimant
from store.states import LEASED, JobStatus
from store.tables import Job, JobEvent
from store.tenants import lock_tenant
from tests.store.queues import WORKER, add_job, add_tenant, claim, claimed


class TestClaim:
    def test_is_leased_to_the_worker(self, database: Database):
        tenant = add_tenant(database, "a")
        job_id = add_job(database, tenant, spec={"k": 2}, revision="abc")
        job = claim(database)
        assert job is not None
        assert (job.id, job.tenant_id, job.fence, job.attempt) == (job_id, tenant, 1, 1)
        assert (job.spec, job.revision, job.checkpoint) == ({"k": 2}, "abc", None)
        with database.read() as session:
            row = get_job(session, tenant, job_id)
            assert (row.status, row.worker_id) == (JobStatus.VALIDATING, "worker-1")
            assert row.lease_until is not None
            left = (row.lease_until - database_now(session)).total_seconds()
            assert 50 < left <= 60
            assert row.started_at is not None

    def test_of_an_empty_queue_is_none(self, database: Database):
        add_tenant(database, "a")
        assert claim(database) is None

    def test_takes_the_oldest(self, database: Database):
        tenant = add_tenant(database, "a")
        jobs = [add_job(database, tenant) for _ in range(3)]
        assert [claimed(database)[0].id for _ in jobs] == jobs
        assert claim(database) is None

    def test_leaves_what_the_worker_cannot_run(self, database: Database):
        tenant, other = add_tenant(database, "a"), add_tenant(database, "b")
        add_job(database, tenant, model="llama")
        add_job(database, tenant, model="org/m", revision="c0ffee", needs_hub=True)
        mine = add_job(database, other)
        assert claimed(database)[0].id == mine
        assert claim(database) is None
        big = Claimant(worker_id="w2", backbones=frozenset({"llama"}))
        hub = Claimant(worker_id="w3", backbones=frozenset(), allows_hub=True)
        assert claimed(database, claimant=big)[0].model == "llama"
        assert claimed(database, claimant=hub)[0].model == "org/m"

    def test_data_of_the_hub_takes_both_the_hub_and_the_backbone(self, database: Database):
        tenant = add_tenant(database, "a")
        job_id = add_job(database, tenant, needs_hub=True)
        without_backbone = Claimant(worker_id="w2", backbones=frozenset(), allows_hub=True)
        assert claim(database) is None
        assert claim(database, without_backbone) is None
        both = Claimant(worker_id="w3", backbones=frozenset({"minilm"}), allows_hub=True)
        assert claimed(database, claimant=both)[0].id == job_id

    def test_leaves_what_is_cancelled(self, database: Database):
        tenant = add_tenant(database, "a")
        job_id = add_job(database, tenant)
        with database.write() as session:
            cancel(session, tenant, job_id)
        assert claim(database) is None


class TestFairness:
    def test_a_small_tenant_is_second_at_the_latest(self, database: Database):
        big, small = add_tenant(database, "big"), add_tenant(database, "small")
        for _ in range(20):
            add_job(database, big)
        first, lease = claimed(database)
        assert first.tenant_id == big
        add_job(database, small)
        lease.advance(JobStatus.TRAINING, message="")
        lease.succeed(result={}, artifacts={})
        assert claimed(database)[0].tenant_id == small

    def test_tenants_take_turns_with_one_worker(self, database: Database):
        tenants = [add_tenant(database, name) for name in "abc"]
        for tenant, count in zip(tenants, (6, 2, 3), strict=True):
            for _ in range(count):
                add_job(database, tenant)
        order = []
        while (job := claim(database)) is not None:
            order.append(tenants.index(job.tenant_id))
            with database.write() as session:
                session.execute(
                    sa.update(Job).where(Job.id == job.id).values(status=JobStatus.SUCCEEDED)
                )
        first_round = order[:3]
        assert sorted(first_round) == [0, 1, 2]
        assert order[3:6] == first_round
        assert Counter(order) == {0: 6, 1: 2, 2: 3}

    def test_with_many_workers_each_tenant_runs_as_many(self, database: Database):
        tenants = [add_tenant(database, name) for name in "abcd"]
        for tenant, count in zip(tenants, (30, 9, 5, 4), strict=True):
            for _ in range(count):
                add_job(database, tenant)
        for number in range(1, 17):
            claimed(database)
            with database.read() as session:
                running = session.scalars(
                    sa.select(Job.tenant_id).where(Job.status.in_(LEASED))
                ).all()
            counts = [running.count(tenant) for tenant in tenants]
            assert sum(counts) == number
            assert max(counts) - min(counts) <= 1

    def test_a_tenant_that_another_claims_for_is_waited_for(self, database: Database):
        small, big = add_tenant(database, "small"), add_tenant(database, "big")
        add_job(database, big)
        claimed(database)
        add_job(database, big)
        add_job(database, small)
        with ThreadPoolExecutor(1) as pool:
            with database.write() as session:  # as one that claims, and is slow
                lock_tenant(session, small)
                claiming = pool.submit(claimed, database)
                time.sleep(0.2)
                assert not claiming.done()
            assert claiming.result()[0].tenant_id == small

    def test_a_quota_is_kept(self, database: Database):
        tenant, free = add_tenant(database, "a", max_running=2), add_tenant(database, "b")
        for _ in range(5):
            add_job(database, tenant)
        add_job(database, free)
        taken = [claimed(database)[0].tenant_id for _ in range(3)]
        assert Counter(taken) == {tenant: 2, free: 1}
        assert claim(database) is None

    def test_the_servers_quota_holds_for_a_tenant_without_one(self, database: Database):
        tenant = add_tenant(database, "a")
        for _ in range(3):
            add_job(database, tenant)
        assert claim(database, max_running=1) is not None
        assert claim(database, max_running=1) is None


class TestParallel:
    @pytest.mark.parametrize("quota", [None, 3])
    def test_no_job_is_claimed_twice_and_no_quota_overshot(self, database: Database, quota):
        quotas = {} if quota is None else {"max_running": quota}
        tenants = [add_tenant(database, f"t{number}", **quotas) for number in range(4)]
        for number in range(40):
            add_job(database, tenants[number % 4])
        start = threading.Barrier(8)

        def work(number: int) -> list[str]:
            start.wait()
            worker = Claimant(worker_id=f"w{number}", backbones=WORKER.backbones)
            jobs = []
            while (job := claim(database, worker)) is not None:
                jobs.append(job.id)
            return jobs

        with ThreadPoolExecutor(8) as pool:
            jobs = [job for part in pool.map(work, range(8)) for job in part]
        assert len(jobs) == len(set(jobs)) == (40 if quota is None else 12)
        with database.read() as session:
            assert set(session.scalars(sa.select(Job.fence).where(Job.id.in_(jobs)))) == {1}
            events = session.scalars(
                sa.select(JobEvent.job_id).where(JobEvent.message.contains("taken"))
            ).all()
        assert sorted(events) == sorted(jobs)
