"""How long a posted job waits for an idle worker."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import Deployment, embedded, end_in_order, networked, push_words
from hifi.backbones.packaged import PACKAGED_MODEL
from service.client import Client
from store.states import FINISHED

# By then the worker is idle, at a random point between two polls of its broker.
_IDLE_SECONDS = (0.5, 1.0)
_POLL_SECONDS = 0.004
SAMPLES, QUICK_SAMPLES = 30, 3


@contextmanager
def _on_redis() -> Iterator[Deployment]:
    """Run gateway and worker on Postgres and Redis."""
    with networked() as deployment:
        deployment.start("serve", "--only", "gateway")
        deployment.start("worker")
        deployment.wait_until_ready(without=("inference",))
        yield deployment


def measure(
    running: AbstractContextManager[Deployment], *, samples: int
) -> list[tuple[float, float]]:
    """Post jobs to an idle worker, one after another, each cancelled once it is claimed.

    Returns:
        For each, the seconds from its creation to its claim by the database's clock, and those from
        the response to the POST until a client sees that the job is no longer queued.
    """
    with running as deployment, Client(deployment.url) as client:
        spec = {
            "model": PACKAGED_MODEL,
            "dataset": push_words(client),
            "k": 1,
            "n_samples": 64,
            "training": {"batch_size": 8, "max_length": 32, "precision": "float32"},
        }
        _wait(client, spec)  # a warm-up: imports and connections
        return [_wait(client, spec) for _ in range(samples)]


def _wait(client: Client, spec: dict[str, Any]) -> tuple[float, float]:
    time.sleep(random.uniform(*_IDLE_SECONDS))  # noqa: S311 - a time, not a secret
    identifier = client.jobs.create(spec)["id"]
    start = time.perf_counter()
    while client.jobs.get(identifier)["status"] == "queued":
        time.sleep(_POLL_SECONDS)
    seen = time.perf_counter() - start
    client.jobs.cancel(identifier)
    while (job := client.jobs.get(identifier))["status"] not in FINISHED:
        time.sleep(_POLL_SECONDS)
    if job["started_at"] is None:
        raise RuntimeError(f"{identifier} was cancelled before it was claimed")
    created, started = map(datetime.fromisoformat, (job["created_at"], job["started_at"]))
    return (started - created).total_seconds(), seen


def main(samples: int = SAMPLES) -> Iterator[Row]:
    """Measure both kinds of deployment; takes four minutes."""
    kinds = (("embedded", embedded, "≤ 0.5"), ("Redis and Postgres", _on_redis, "≤ 0.1"))
    for kind, running, target in kinds:
        by_clock, by_client = zip(*measure(running(), samples=samples), strict=True)
        label = f"from POST to the claim by an idle worker, {kind}, {samples} jobs"
        for whose, waits in (("database's clock", by_clock), ("seen by the client", by_client)):
            yield Row(f"{label}: {whose}, median", statistics.median(waits), target, unit="s")
            yield Row(f"{label}: {whose}, worst", max(waits), unit="s")


if __name__ == "__main__":
    end_in_order()
    print_rows(main(QUICK_SAMPLES if "--quick" in sys.argv[1:] else SAMPLES))
