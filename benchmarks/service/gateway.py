"""The gateway alone: POST /jobs against an endpoint that stores nothing, its delay, its memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from benchmarks.rows import Row, print_rows
from benchmarks.service.bare_servers import bare_server
from benchmarks.service.deployment import (
    Deployment,
    database_of,
    end_in_order,
    gateway,
    push_words,
    resident_megabytes,
)
from benchmarks.service.line_process import line_process
from benchmarks.service.load import Order, Report
from hifi.backbones.models import resolve_model
from hifi.backbones.packaged import PACKAGED_MODEL
from service.client import Client
from store.identifiers import new_identifier
from store.tables import ApiKey, Dataset, Job
from worker.descriptions import describe_backbone

if TYPE_CHECKING:
    from store.database import Database
    from store.workers import BackboneDescription

CLIENTS = 32
LOAD = 0.6
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
    """How much is measured."""

    repetitions: int
    seconds: float
    warmup_seconds: float


FULL = Size(repetitions=3, seconds=10.0, warmup_seconds=2.0)
QUICK = Size(repetitions=1, seconds=2.0, warmup_seconds=0.5)


class Generator:
    """The load generator, ordered about."""

    def __init__(self, ask: Callable[[dict[str, object]], dict[str, object]], size: Size) -> None:
        self._ask = ask
        self._size = size

    def post(
        self,
        port: int,
        *,
        bodies: Sequence[str],
        keys: Sequence[str] = ("hifi_none",),
        per_second: float | None = None,
    ) -> Report:
        """Post jobs: client ``n`` the ``n``-th body with the ``n``-th key."""
        order = Order(
            port=port,
            bodies=bodies,
            keys=keys,
            clients=CLIENTS,
            warmup_seconds=self._size.warmup_seconds,
            seconds=self._size.seconds,
            per_second=per_second,
        )
        return Report(**self._ask(asdict(order)))  # type: ignore[arg-type] # its own fields


@contextmanager
def generator(size: Size) -> Iterator[Generator]:
    """Start the load generator."""
    with line_process("benchmarks.service.load") as ask:
        yield Generator(ask, size)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A gateway that was under load.

    Attributes:
        report: what its clients saw.
        lost: jobs that were accepted and are not in the table, or the other way round.
        megabytes: resident at the end.
    """

    report: Report
    lost: int
    megabytes: float


def load_gateway(
    load: Generator,
    *,
    tenants: int,
    backbone: BackboneDescription,
    per_second: float | None = None,
) -> Loaded:
    """Put a fresh gateway on a fresh database under load, and count afterwards."""
    with (
        gateway(tenants=tenants, backbone=backbone) as (deployment, process, keys),
        database_of(deployment) as database,
    ):
        datasets = _share(database, _push(deployment, keys[0]))
        bodies = [_body(dataset) for dataset in datasets]
        report = load.post(deployment.port, bodies=bodies, keys=keys, per_second=per_second)
        with database.read() as session:
            stored = set(session.scalars(sa.select(Job.id)))
        twice = len(report.accepted) - len(set(report.accepted))
        lost = len(stored ^ set(report.accepted)) + twice
        return Loaded(report=report, lost=lost, megabytes=resident_megabytes(process.pid))


def _push(deployment: Deployment, key: str) -> str:
    """Upload a data set; give its id."""
    with Client(deployment.url, api_key=key) as client, tempfile.TemporaryDirectory() as folder:
        return push_words(client, Path(folder))


def _share(database: Database, dataset: str) -> list[str]:
    """Give a data set to all tenants, as if each had uploaded it; give ids in the keys' order."""
    with database.write() as session:
        row = session.get_one(Dataset, dataset)
        columns = {column.key: getattr(row, column.key) for column in Dataset.__mapper__.columns}
        owners = session.scalars(sa.select(ApiKey.tenant_id).order_by(ApiKey.created_at))
        datasets = {owner: new_identifier("ds") for owner in owners}
        datasets[row.tenant_id] = dataset
        session.add_all(
            Dataset(**{**columns, "id": identifier, "tenant_id": owner})
            for owner, identifier in datasets.items()
            if owner != row.tenant_id
        )
    return list(datasets.values())


def _body(dataset: str) -> str:
    return json.dumps({**_SPEC, "dataset": dataset})


def measure_load(load: Generator, size: Size, backbone: BackboneDescription) -> Iterator[Row]:
    """Measure the gateway and the bare endpoints in turns, each in a fresh process."""
    bare: dict[str, list[Report]] = defaultdict(list)
    ours: dict[int, list[Loaded]] = defaultdict(list)
    partial: list[Loaded] = []
    for _ in range(size.repetitions):
        for kind in ("socket", "loop", "thread"):
            with bare_server(kind) as port:
                bare[kind].append(load.post(port, bodies=[_body("ds_0")]))
        for tenants in (1, CLIENTS):
            ours[tenants].append(load_gateway(load, tenants=tenants, backbone=backbone))
        rate = LOAD * ours[1][-1].report.rate
        partial.append(load_gateway(load, tenants=1, backbone=backbone, per_second=rate))
    yield from _rate_rows(bare, ours)
    label = f"POST /jobs arriving at random, {LOAD:.0%} of the highest rate, 1 tenant"
    for name, reach in (("rate", None), ("p50", None), ("p99", "≤ 100"), ("worst", None)):
        value = statistics.median(getattr(run.report, name) for run in partial)
        yield Row(f"{label}: {name}", value, reach, unit="/s" if name == "rate" else "ms")
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
    accepted = sum(len(run.report.accepted) for run in runs)
    yield Row(f"{label}: errors beside {accepted:,} accepted", errors, "≤ 0")
    yield Row(f"{label}: jobs lost", sum(run.lost for run in runs), "≤ 0")
    cpu = max(run.report.cpu for run in runs)
    yield Row(f"{label}: share of a core that the load generator took, at most", cpu)
    megabytes = max(run.megabytes for run in runs)
    yield Row(f"{label}: resident memory afterwards, at most", megabytes, _MEGABYTES, unit="MB")


def measure_memory(size: Size, backbone: BackboneDescription) -> Iterator[Row]:
    """Measure resident memory of a gateway that does little."""
    starts, uses, torch = [], [], 0
    for _ in range(size.repetitions):
        with gateway(tenants=1, backbone=backbone) as (deployment, process, keys):
            starts.append(resident_megabytes(process.pid))
            _use(deployment, keys[0])
            uses.append(resident_megabytes(process.pid))
            torch += _files_of_torch(process)
    label = "resident memory of the gateway"
    yield Row(f"{label} after its start", statistics.median(starts), _MEGABYTES, unit="MB")
    used = f"{label} after 100 requests and an upload"
    yield Row(used, statistics.median(uses), _MEGABYTES, unit="MB")
    yield Row("files of torch that the gateway has mapped", torch, "≤ 0")


def _use(deployment: Deployment, key: str) -> None:
    """Upload a data set, and make a hundred further requests."""
    body = json.loads(_body(_push(deployment, key)))
    with Client(deployment.url, api_key=key) as client:
        for _ in range(20):
            job = client.jobs.create(body)
            client.jobs.get(job["id"])
            client.jobs.list()
            client.jobs.events(job["id"])
            client.jobs.cancel(job["id"])


def _files_of_torch(process: subprocess.Popen[bytes]) -> int:
    maps = Path(f"/proc/{process.pid}/maps").read_text("utf-8")
    return len({line.split()[-1] for line in maps.splitlines() if "torch" in line})


def main(size: Size = FULL) -> Iterator[Row]:
    """Measure all of it, seven minutes."""
    backbone = describe_backbone(PACKAGED_MODEL, resolve_model(PACKAGED_MODEL).path)
    yield from measure_memory(size, backbone)
    with generator(size) as load:
        yield from measure_load(load, size, backbone)


if __name__ == "__main__":
    end_in_order()
    print_rows(main(QUICK if "--quick" in sys.argv[1:] else FULL))
