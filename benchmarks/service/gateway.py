"""The gateway alone: rate and latency of POST /jobs against bare endpoints, and its memory."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from benchmarks.load import Order, Report, load_generator, write_request
from benchmarks.machine import resident_megabytes
from benchmarks.rows import Row, print_rows
from benchmarks.service.bare_servers import bare_server
from benchmarks.service.deployment import Deployment, database_of, end_in_order, gateway, push_words
from hifi.backbones.packaged import PACKAGED_MODEL
from service.client import Client
from store.database.identifiers import new_identifier
from store.tables import ApiKey, Dataset, Job

if TYPE_CHECKING:
    from store.database.connection import Database

CLIENTS = 32
LOAD = 0.6
_ENOUGH_KEYS = 20_000  # more than a run posts
_SPEC = {
    "model": PACKAGED_MODEL,
    "task": {"type": "classification", "text": ["text"], "label": "label", "metric": "f1"},
    "k": 3,
    "xi": 0.9,
    "d": 0.85,
    "n_samples": 100,
    "training": {"epochs": 3, "learning_rate": 3e-4, "batch_size": 32, "max_length": 128},
    "name": "mrpc",
    "metadata": {"team": "search"},
}
_MEGABYTES = "≤ 150"


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the measurement."""

    repetitions: int
    seconds: float
    warmup_seconds: float


FULL = Size(repetitions=3, seconds=10.0, warmup_seconds=2.0)
QUICK = Size(repetitions=1, seconds=2.0, warmup_seconds=0.5)


@dataclass(frozen=True)
class Load:
    """Posts jobs from many clients through the load generator."""

    carry_out: Callable[[Order], Report]
    size: Size

    def post(
        self,
        port: int,
        jobs: Sequence[tuple[str, str]],
        *,
        per_second: float | None = None,
        idempotency_keys: Sequence[str | None] = (None,),
    ) -> Report:
        """Post jobs with these pairs of data set and key, in turn."""
        bodies = [(json.dumps({**_SPEC, "dataset": dataset}), key) for dataset, key in jobs]
        return self.carry_out(
            Order(
                port=port,
                requests=[
                    write_request("/jobs", body.encode(), key=key, idempotency_key=once)
                    for once in idempotency_keys
                    for body, key in bodies
                ],
                clients=CLIENTS,
                warmup_seconds=self.size.warmup_seconds,
                seconds=self.size.seconds,
                per_second=per_second,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The result of a gateway under load.

    Attributes:
        report: of the load generator.
        lost: jobs that were accepted but are not in the table, or the reverse.
        megabytes: resident memory at the end.
    """

    report: Report
    lost: int
    megabytes: float


def load_gateway(
    load: Load,
    *,
    tenants: int,
    per_second: float | None = None,
    idempotency_keys: Sequence[str | None] = (None,),
) -> Loaded:
    """Put a new gateway on a new database under load, then count the jobs."""
    with gateway(tenants=tenants) as (deployment, keys), database_of(deployment) as database:
        with Client(deployment.url, api_key=keys[0]) as client:
            datasets = _share(database, push_words(client))
        jobs = list(zip(datasets, keys, strict=True))
        report = load.post(
            deployment.port, jobs, per_second=per_second, idempotency_keys=idempotency_keys
        )
        with database.read() as session:
            stored = set(session.scalars(sa.select(Job.id)))
        twice = len(report.answered) - len(set(report.answered))
        lost = len(stored ^ set(report.answered)) + twice
        return Loaded(report=report, lost=lost, megabytes=_megabytes(deployment))


def _share(database: Database, dataset: str) -> list[str]:
    """Copy the first tenant's data set to the others; return the ids in the order of the keys."""
    with database.write() as session:
        row = session.get_one(Dataset, dataset)
        columns = {column.key: getattr(row, column.key) for column in Dataset.__mapper__.columns}
        owners = session.scalars(sa.select(ApiKey.tenant_id).order_by(ApiKey.created_at)).all()
        copies = [
            Dataset(**{**columns, "id": new_identifier("ds"), "tenant_id": owner})
            for owner in owners[1:]
        ]
        session.add_all(copies)
        return [dataset, *(copy.id for copy in copies)]


def measure_load(load: Load) -> Iterator[Row]:
    """Measure the gateway and the bare endpoints in turns, each in a new process."""
    bare: dict[str, list[Report]] = defaultdict(list)
    ours: dict[int, list[Loaded]] = defaultdict(list)
    partial: list[Loaded] = []
    keyed: list[Loaded] = []
    keys = [new_identifier("key") for _ in range(_ENOUGH_KEYS)]
    for _ in range(load.size.repetitions):
        for kind in ("socket", "loop", "thread"):
            with bare_server(kind) as port:
                bare[kind].append(load.post(port, [("ds_0", "hifi_none")]))
        for tenants in (1, CLIENTS):
            ours[tenants].append(load_gateway(load, tenants=tenants))
        rate = LOAD * ours[1][-1].report.rate
        partial.append(load_gateway(load, tenants=1, per_second=rate))
        keyed.append(load_gateway(load, tenants=1, idempotency_keys=keys))
    yield from _rate_rows(bare, ours)
    label = f"POST /jobs, {CLIENTS} clients, an idempotency key each: gateway, 1 tenant"
    yield Row(label, statistics.median(run.report.rate for run in keyed), unit="/s")
    yield from _flaws(label, keyed)
    label = f"POST /jobs arriving at random, {LOAD:.0%} of the highest rate, 1 tenant"
    for name, target in (("rate", None), ("p50", None), ("p99", "≤ 100"), ("worst", None)):
        value = statistics.median(getattr(run.report, name) for run in partial)
        yield Row(f"{label}: {name}", value, target, unit="/s" if name == "rate" else "ms")
    yield from _flaws(label, partial)


def _rate_rows(bare: dict[str, list[Report]], ours: dict[int, list[Loaded]]) -> Iterator[Row]:
    rates = {kind: statistics.median(r.rate for r in reports) for kind, reports in bare.items()}
    label = f"POST /jobs, {CLIENTS} clients: "
    yield Row(f"{label}the load generator against a socket", rates["socket"], unit="/s")
    yield Row(f"{label}FastAPI, async def, nothing stored", rates["loop"], unit="/s")
    yield Row(f"{label}FastAPI, def, nothing stored", rates["thread"], unit="/s")
    for tenants, runs in ours.items():
        rate = statistics.median(run.report.rate for run in runs)
        whose = f"{label}gateway, {tenants} tenant{'s' * (tenants > 1)}"
        yield Row(whose, rate, "≥ 100", unit="/s")
        yield from _flaws(whose, runs)


def _flaws(label: str, runs: Sequence[Loaded]) -> Iterator[Row]:
    errors = sum(sum(run.report.errors.values()) for run in runs)
    accepted = sum(len(run.report.answered) for run in runs)
    yield Row(f"{label}: errors next to {accepted:,} accepted", errors, "≤ 0")
    yield Row(f"{label}: jobs lost", sum(run.lost for run in runs), "≤ 0")
    cpu = max(run.report.cpu for run in runs)
    yield Row(f"{label}: share of a core that the load generator used, at most", cpu)
    megabytes = max(run.megabytes for run in runs)
    yield Row(f"{label}: resident memory afterwards, at most", megabytes, _MEGABYTES, unit="MB")


def measure_memory(size: Size) -> Iterator[Row]:
    """Measure the resident memory of a gateway with little load."""
    starts, uses, torch = [], [], 0
    for _ in range(size.repetitions):
        with gateway(tenants=1) as (deployment, keys):
            starts.append(_megabytes(deployment))
            _use(deployment, keys[0])
            uses.append(_megabytes(deployment))
            torch += _files_of_torch(deployment)
    label = "resident memory of the gateway"
    yield Row(f"{label} after its start", statistics.median(starts), _MEGABYTES, unit="MB")
    used = f"{label} after 100 requests and an upload"
    yield Row(used, statistics.median(uses), _MEGABYTES, unit="MB")
    yield Row("files of torch that the gateway has mapped", torch, "≤ 0")


def _use(deployment: Deployment, key: str) -> None:
    """Upload a data set, then send a hundred requests."""
    with Client(deployment.url, api_key=key) as client:
        body = {**_SPEC, "dataset": push_words(client)}
        for _ in range(20):
            job = client.jobs.create(body)
            client.jobs.get(job["id"])
            client.jobs.list()
            client.jobs.events(job["id"])
            client.jobs.cancel(job["id"])


def _megabytes(deployment: Deployment) -> float:
    return resident_megabytes(deployment.processes[0].pid)


def _files_of_torch(deployment: Deployment) -> int:
    maps = Path(f"/proc/{deployment.processes[0].pid}/maps").read_text("utf-8")
    return len({line.split()[-1] for line in maps.splitlines() if "torch" in line})


def main(size: Size = FULL) -> Iterator[Row]:
    """Measure the gateway; takes seven minutes."""
    yield from measure_memory(size)
    with load_generator() as carry_out:
        yield from measure_load(Load(carry_out, size))


if __name__ == "__main__":
    end_in_order()
    print_rows(main(QUICK if "--quick" in sys.argv[1:] else FULL))
