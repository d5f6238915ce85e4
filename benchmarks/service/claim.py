"""How long a posted job waits for an idle worker."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import (
    Deployment,
    database_of,
    embedded,
    end_in_order,
    networked,
    push_words,
)
from hifi.backbones.packaged import PACKAGED_MODEL
from service.client import Client
from store.states import FINISHED
from store.tables import Job

if TYPE_CHECKING:
    from store.database.connection import Database

# By then the worker is idle, at a random point between two polls of its broker.
_IDLE_SECONDS = (0.5, 1.0)
_POLL_SECONDS = 0.004


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the measurement."""

    samples: int


FULL = Size(samples=30)
QUICK = Size(samples=3)


@contextmanager
def _on_redis() -> Iterator[Deployment]:
    """Run gateway and worker on Postgres and Redis."""
    with networked() as deployment:
        deployment.start("serve", "--only", "gateway")
        deployment.start("worker")
        deployment.wait_until_ready(without=("inference",))
        yield deployment


def measure(running: AbstractContextManager[Deployment], size: Size) -> tuple[list[float], ...]:
    """Post jobs to an idle worker, one after another, each cancelled once it is claimed.

    Returns:
        Seconds from a job's creation to its claim by the database's clock; and seconds from the
        response to the POST until a client sees that the job is no longer queued.
    """
    with (
        running as deployment,
        database_of(deployment) as database,
        Client(deployment.url) as client,
    ):
        spec = {
            "model": PACKAGED_MODEL,
            "dataset": push_words(client),
            "k": 1,
            "n_samples": 64,
            "training": {"batch_size": 8, "max_length": 32, "precision": "float32"},
        }
        _wait(client, spec, database)  # a warm-up: imports and connections
        waits = [_wait(client, spec, database) for _ in range(size.samples)]
    by_clock, by_client = zip(*waits, strict=True)
    return list(by_clock), list(by_client)


def _wait(client: Client, spec: dict[str, Any], database: Database) -> tuple[float, float]:
    time.sleep(random.uniform(*_IDLE_SECONDS))  # noqa: S311 - a time, not a secret
    identifier = client.jobs.create(spec)["id"]
    start = time.perf_counter()
    while client.jobs.get(identifier)["status"] == "queued":
        time.sleep(_POLL_SECONDS)
    seen = time.perf_counter() - start
    client.jobs.cancel(identifier)
    while client.jobs.get(identifier)["status"] not in FINISHED:
        time.sleep(_POLL_SECONDS)
    with database.read() as session:
        job = session.get_one(Job, identifier)
        if job.started_at is None:
            raise RuntimeError(f"{identifier} was cancelled before it was claimed")
        return (job.started_at - job.created_at).total_seconds(), seen


def main(size: Size = FULL) -> Iterator[Row]:
    """Measure both kinds of deployment; takes four minutes."""
    kinds = (("embedded", embedded, "≤ 0.5"), ("Redis and Postgres", _on_redis, "≤ 0.1"))
    for kind, running, target in kinds:
        by_clock, by_client = measure(running(), size)
        label = f"from POST to the claim by an idle worker, {kind}, {size.samples} jobs"
        for whose, waits in (("database's clock", by_clock), ("seen by the client", by_client)):
            yield Row(f"{label}: {whose}, median", statistics.median(waits), target, unit="s")
            yield Row(f"{label}: {whose}, worst", max(waits), unit="s")


if __name__ == "__main__":
    end_in_order()
    print_rows(main(QUICK if "--quick" in sys.argv[1:] else FULL))
