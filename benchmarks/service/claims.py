"""Speed and fairness of claims from one Postgres; the workers do not train."""

from __future__ import annotations

import os
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import TypeAlias

import sqlalchemy as sa

from benchmarks.rows import Row, print_rows
from store.database.connection import Database, database_now
from store.database.schema import upgrade
from store.jobs.claims import Claimant, ClaimedJob, claim_next
from store.jobs.leases import Lease
from store.states import LEASED, JobStatus
from store.tables import Job, JobEvent, Tenant

Jobs: TypeAlias = "Queue[list[str]]"
POSTGRES = os.environ.get("HIFI_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
WORKERS = 16
JOBS, TENANTS = 10_000, 500
UNEQUAL = (400, 200, 100, 50)
HELD_SECONDS = (0.2, 0.6)  # how long a worker holds a job in the test of fairness
REPETITIONS = 3
_LEASE_SECONDS = 60.0
_START_SECONDS, _WORK_SECONDS = 300.0, 900.0
_MAX_RUNNING = 16
_BACKBONE = "minilm"
_TRAINING = {"epochs": 3, "learning_rate": 3e-4, "batch_size": 32, "max_length": 128, "seed": 0}
_SPEC = {
    "model": _BACKBONE,
    "dataset": "ds_0",
    "k": 3,
    "xi": 0.9,
    "d": 0.85,
    "n_samples": 300,
    "task": {"type": "classification", "text": ["sentence1", "sentence2"], "label": "label"},
    "training": _TRAINING,
}


@contextmanager
def fresh_database() -> Iterator[str]:
    """Create a database with all tables, and drop it afterwards."""
    server = sa.make_url(POSTGRES).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"hifi_bench_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = server.set(database=name).render_as_string(hide_password=False)
    try:
        upgrade(url)
        yield url
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()


def fill(database: Database, queues: Sequence[int]) -> None:
    """Queue the given number of jobs of each tenant, one tenant after the other."""
    with database.write() as session:
        start = database_now(session)
        session.execute(
            sa.insert(Tenant),
            [
                {"id": f"ten_{n}", "name": f"{n}", "is_admin": False, "created_at": start}
                for n in range(len(queues))
            ],
        )
        owners = [tenant for tenant, count in enumerate(queues) for _ in range(count)]
        jobs = [
            {
                "id": f"job_{n:06}",
                "tenant_id": f"ten_{tenant}",
                "status": JobStatus.QUEUED,
                "meta": {},
                "spec": _SPEC,
                "model": _BACKBONE,
                "needs_hub": False,
                "attempt": 1,
                "fence": 0,
                "last_event": 1,
                "token_at": start,
                "created_at": start + timedelta(milliseconds=n),
            }
            for n, tenant in enumerate(owners)
        ]
        session.execute(sa.insert(Job), jobs)
        event = {"number": 1, "type": "status", "level": "info", "message": "queued", "data": {}}
        rows = [{**event, "job_id": job["id"], "created_at": start} for job in jobs]
        session.execute(sa.insert(JobEvent), rows)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum does on a real server


def run_jobs(
    database: Database, worker: str, *, hold: tuple[float, float] = (0, 0)
) -> Iterator[ClaimedJob]:
    """Claim and finish jobs until there are none."""
    claimant = Claimant(worker_id=worker, backbones=frozenset({_BACKBONE}))
    while job := claim_next(
        database, claimant, lease_seconds=_LEASE_SECONDS, max_running=_MAX_RUNNING
    ):
        yield job
        if hold[1]:
            time.sleep(random.uniform(*hold))  # noqa: S311 - spreads the ends, not a secret
        lease = Lease(database, job.id, fence=job.fence, seconds=_LEASE_SECONDS)
        lease.advance(JobStatus.TRAINING, message="training")
        lease.succeed(result={}, artifacts={})


def _work(url: str, name: str, hold: tuple[float, float], start: Barrier, claimed: Jobs) -> None:
    """Run a worker process: connect, wait for the others, work, report the claimed jobs."""
    database = Database(url, pool_size=1)
    with database.read() as session:
        database_now(session)
    start.wait()
    claimed.put([job.id for job in run_jobs(database, name, hold=hold)])
    database.close()


@contextmanager
def workers(url: str, *, hold: tuple[float, float] = (0, 0)) -> Iterator[Jobs]:
    """Run worker processes; they and the block start when all are ready.

    Yields:
        A queue to which each worker, once no job is left, puts the ids of its jobs.
    """
    context = get_context("spawn")
    start, claimed = context.Barrier(WORKERS + 1), context.Queue()
    processes = [
        context.Process(target=_work, args=(url, f"worker-{n}", hold, start, claimed), daemon=True)
        for n in range(WORKERS)
    ]
    for process in processes:
        process.start()
    try:
        start.wait(_START_SECONDS)
        yield claimed
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure_speed() -> tuple[float, int]:
    """Return claims per second, and the number of jobs claimed twice or never."""
    with fresh_database() as url:
        database = Database(url)
        fill(database, [JOBS // TENANTS] * TENANTS)
        with workers(url) as claimed:
            start = time.perf_counter()
            claims = Counter(
                job for _ in range(WORKERS) for job in claimed.get(timeout=_WORK_SECONDS)
            )
            seconds = time.perf_counter() - start
        database.close()
    wrong = sum(count - 1 for count in claims.values()) + JOBS - len(claims)
    return claims.total() / seconds, wrong


def measure_turn() -> int:
    """Return at which turn a worker claims a tenant's only job, queued behind 1,000 of another."""
    with fresh_database() as url:
        database = Database(url)
        fill(database, [1000, 1])
        jobs = run_jobs(database, "worker")
        turn = next(turn for turn, job in enumerate(jobs, start=1) if job.tenant_id == "ten_1")
        database.close()
    return turn


def measure_spread() -> tuple[int, int]:
    """Watch 16 workers at the jobs of 4 tenants with unequal queues.

    Returns:
        The largest difference between two tenants' running jobs, sampled while every worker had a
        job and every tenant had more waiting; and the number of samples.
    """
    looks = []
    with fresh_database() as url:
        database = Database(url)
        fill(database, UNEQUAL)
        with workers(url, hold=HELD_SECONDS):
            while (running := _running(database)) is not None:
                if sum(running) == WORKERS:
                    looks.append(max(running) - min(running))
                time.sleep(0.005)
        database.close()
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
