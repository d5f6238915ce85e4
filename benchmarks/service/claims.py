"""Speed and fairness of claims from one Postgres; the workers do not train."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from threading import Barrier

import sqlalchemy as sa

from benchmarks.rows import Row, print_rows
from store.database.connection import Database, database_now
from store.database.schema import upgrade
from store.jobs.actions import submit
from store.jobs.claims import Claimant, ClaimedJob, claim_next
from store.jobs.leases import Lease
from store.jobs.spec import JobSpec
from store.states import LEASED, JobStatus
from store.tables import Job, Tenant
from tests.databases import fresh_postgres
from tests.store.queues import NEW

WORKERS = 16
JOBS, TENANTS = 10_000, 500
UNEQUAL = (400, 200, 100, 50)
HELD_SECONDS = (0.2, 0.6)  # how long a worker holds a job in the test of fairness
REPETITIONS = 3
_LEASE_SECONDS = 60.0
_START_SECONDS = 300.0
_MAX_RUNNING = 16
_JOB = replace(NEW, spec=JobSpec(model=NEW.model, dataset="ds_0").model_dump(mode="json"))


@contextmanager
def migrated_postgres() -> Iterator[str]:
    """Create a Postgres database with all tables, and drop it afterwards."""
    with fresh_postgres() as url:
        upgrade(url)
        yield url


@contextmanager
def queued(queues: Sequence[int]) -> Iterator[tuple[str, Database]]:
    """Create a database in which the tenants ``ten_0`` and so on have these numbers of jobs."""
    with migrated_postgres() as url, closing(Database(url)) as database:
        with database.write() as session:
            now = database_now(session)
            session.add_all(
                Tenant(id=f"ten_{n}", name=f"{n}", is_admin=False, created_at=now)
                for n in range(len(queues))
            )
            session.flush()
            for tenant, count in enumerate(queues):
                for _ in range(count):
                    submit(session, f"ten_{tenant}", _JOB, max_queued=count)
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum does on a real server
        yield url, database


def run_jobs(
    database: Database, worker: str, *, hold: tuple[float, float] = (0, 0)
) -> Iterator[ClaimedJob]:
    """Claim and finish jobs until there are none."""
    claimant = Claimant(worker_id=worker, backbones=frozenset({NEW.model}))
    while job := claim_next(
        database, claimant, lease_seconds=_LEASE_SECONDS, max_running=_MAX_RUNNING
    ):
        yield job
        if hold[1]:
            time.sleep(random.uniform(*hold))  # noqa: S311 - spreads the ends, not a secret
        lease = Lease(database, job.id, fence=job.fence, seconds=_LEASE_SECONDS)
        lease.advance(JobStatus.TRAINING, message="training")
        lease.succeed(result={}, artifacts={})


def _work(url: str, name: str, hold: tuple[float, float], start: Barrier) -> list[str]:
    """Connect, wait for the other workers, work, return the ids of the claimed jobs."""
    with closing(Database(url, pool_size=1)) as database:
        with database.read() as session:
            database_now(session)
        start.wait(_START_SECONDS)
        return [job.id for job in run_jobs(database, name, hold=hold)]


@contextmanager
def workers(url: str, *, hold: tuple[float, float] = (0, 0)) -> Iterator[list[Future[list[str]]]]:
    """Run worker processes until no job is left; yield the ids of each one's jobs to come.

    They and the block start when all are ready.
    """
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        start = manager.Barrier(WORKERS + 1)
        claimed = [pool.submit(_work, url, f"worker-{n}", hold, start) for n in range(WORKERS)]
        start.wait(_START_SECONDS)
        yield claimed


def measure_speed() -> tuple[float, int]:
    """Return claims per second, and the number of jobs claimed twice or never."""
    with queued([JOBS // TENANTS] * TENANTS) as (url, _), workers(url) as claimed:
        start = time.perf_counter()
        claims = Counter(job for worker in claimed for job in worker.result())
        seconds = time.perf_counter() - start
    wrong = sum(count - 1 for count in claims.values()) + JOBS - len(claims)
    return claims.total() / seconds, wrong


def measure_turn() -> int:
    """Return at which turn a worker claims a tenant's only job, queued behind 1,000 of another."""
    with queued([1000, 1]) as (_, database):
        jobs = run_jobs(database, "worker")
        return next(turn for turn, job in enumerate(jobs, start=1) if job.tenant_id == "ten_1")


def measure_spread() -> tuple[int, int]:
    """Watch 16 workers at the jobs of 4 tenants with unequal queues.

    Returns:
        The largest difference between two tenants' running jobs, sampled while every worker had a
        job and every tenant had more waiting; and the number of samples.
    """
    looks = []
    with queued(UNEQUAL) as (url, database), workers(url, hold=HELD_SECONDS):
        while (running := _running(database)) is not None:
            if sum(running) == WORKERS:
                looks.append(max(running) - min(running))
            time.sleep(0.005)
    return max(looks), len(looks)


def _running(database: Database) -> list[int] | None:
    """Count each tenant's running jobs; return None once a tenant has none waiting."""
    running = sa.func.count().filter(Job.status.in_(LEASED))
    waiting = sa.func.count().filter(Job.status == JobStatus.QUEUED)
    with database.read() as session:
        rows = session.execute(sa.select(running, waiting).group_by(Job.tenant_id)).all()
    return None if any(row[1] == 0 for row in rows) else [row[0] for row in rows]


def main() -> list[Row]:
    """Measure speed and fairness of claims on Postgres."""
    runs = [measure_speed() for _ in range(REPETITIONS)]
    speed = statistics.median(run[0] for run in runs)
    label = f"{WORKERS} claiming processes, {JOBS:,} jobs of {TENANTS} tenants: "
    spread, looks = measure_spread()
    return [
        Row(f"{label}claims, each advanced and finished", speed, "≥ 200", unit="/s"),
        Row(f"{label}claimed twice, or never", sum(run[1] for run in runs), "≤ 0"),
        Row("1 worker, 1,000 jobs before another tenant's one: its turn", measure_turn(), "≤ 2"),
        Row(
            f"{WORKERS} workers, queues of {UNEQUAL}: running jobs between two tenants, "
            f"largest of {looks} looks",
            spread,
            "≤ 1",
        ),
    ]


if __name__ == "__main__":
    print_rows(main())
