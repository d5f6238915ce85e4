"""A whole service with two tenants, of which one does its worst."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import sqlalchemy as sa

from hifi.backbones.packaged import PACKAGED_MODEL
from service.embedded.listening import free_loopback_port
from store.database.connection import Database
from store.jobs.telemetry import ENGINE_CRASHES, measure
from store.tables import Tenant as TenantRow
from tests.integration.deployment import Deployment, children, deployed, is_ready
from tests.integration.finished import Tenant, add_finished, settings_of
from tests.integration.hostile import HANGING_STORE, OVER_QUOTA, START
from tests.integration.served import command_line
from tests.integration.servers import PostgresServer, RedisServer, running
from tests.slow_store import SlowStore, slow_store
from tests.waiting import eventually, patience

ROWS = b"text,label\n" + b"".join(b"row %d,%d\n" % (row, row % 2) for row in range(20))
FILES = {"train": ("train.csv", ROWS)}
QUOTA = 1_000_000  # bytes of the hostile tenant, when it is after them
ENGINE_BYTES, INFERENCE_BYTES = 3 << 30, 2 << 30  # of memory, at most
_PARTS = {"gateway": "--only gateway", "worker": " worker", "inference": " infer"}
_ENGINE = f"worker.engine.process cpu text {ENGINE_BYTES} "  # not the one that describes backbones


@dataclass
class Neighbours:
    """A service that runs, and its tenants.

    Attributes:
        gateways: their URLs: the hostile tenant uses the first, the other one all in turn.
        store: has all artifacts.
        hostile, other: each has a finished job.
        dataset: of the other tenant, none of whose jobs a worker takes.
    """

    deployment: Deployment
    client: httpx2.Client
    gateways: tuple[str, ...]
    store: SlowStore
    hostile: Tenant
    other: Tenant
    dataset: str = ""  # until the service runs

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.gateways)

    @property
    def url(self) -> str:
        """The gateway that the hostile tenant uses."""
        return self.gateways[0]

    def seconds(self) -> dict[str, float]:
        """Make a call of each kind as the other tenant; return how long each took.

        Raises:
            AssertionError: a call was refused.
        """
        spec = {"model": PACKAGED_MODEL, "dataset": self.dataset}
        return {
            "GET": self.time("GET", "/jobs"),
            "POST /jobs": self.time("POST", "/jobs", json=spec),
            "upload": self.time("POST", "/datasets", files=FILES),
            "prediction": self.time_prediction(),
        }

    def time_prediction(self) -> float:
        """Ask for one prediction as the other tenant; return the seconds until the answer."""
        body = {"inputs": [{"text": "it is rather bright"}]}
        return self.time("POST", f"/jobs/{self.other.jobs[0]}/predict", json=body)

    def time(self, method: str, path: str, **content: Any) -> float:
        """Make a call as the other tenant; return the seconds until the answer."""
        began = time.monotonic()
        answer = self.call(method, path, **content)
        took = time.monotonic() - began
        assert answer.is_success, (method, path, answer.text)
        assert not answer.json().get("data", [{}])[0].get("error"), answer.text
        return took

    def call(self, method: str, path: str, **content: Any) -> httpx2.Response:
        """Send a request of the other tenant on a connection of its own."""
        headers = {**self.other.headers, "Connection": "close"}
        return self.client.request(method, f"{next(self._turns)}{path}", headers=headers, **content)

    @contextmanager
    def under(self, act: str) -> Iterator[Callable[[], Counter[str]]]:
        """Let the hostile tenant do one of ``hostile.ACTS`` during a block, without a pause.

        Yields:
            A function that returns how often it began a request, and got which status, so far.
        """
        self._set_quotas(self.hostile, max_bytes=QUOTA if act == OVER_QUOTA else None)
        if act == HANGING_STORE:
            owner = self.hostile.member.tenant_id
            self.store.mood = lambda _, key: "silent" if key.startswith(owner) else "well"
        log = self.deployment.home / f"{act}.statuses"

        def heard() -> Counter[str]:
            return Counter(log.read_text().split())

        arguments = (act, self.url, self.hostile.member.secret, self.hostile.jobs[0])
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.hostile", *arguments], stdout=output
            )
        try:
            start = START.get(act, "begun")
            eventually(lambda: start in heard() or process.poll(), seconds=60, message=act)
            yield heard
            assert process.poll() is None, f"{act}: the attacker has failed"
        finally:
            process.kill()
            process.wait()
            self._recover()

    def _recover(self) -> None:
        """End what the hostile tenant has left behind."""
        self.store.mood = lambda _method, _key: "well"
        self.store.released.set()
        for job in self._hostile_jobs():
            if job["finished_at"] is None:
                url = f"{self.url}/jobs/{job['id']}/cancel"
                self.client.post(url, headers=self.hostile.headers)
        eventually(lambda: self.store.hanging == 0)
        self.store.released.clear()

    def parts(self) -> dict[str, int]:
        """Return the process ids of gateway, worker and inference, the first of each."""
        started = [process.pid for process in self.deployment.processes]
        every = [*started, *itertools.chain.from_iterable(map(children, started))]
        commands = {pid: command_line(pid) for pid in every}
        return {
            part: next(pid for pid, command in commands.items() if word in command)
            for part, word in _PARTS.items()
        }

    def engine(self) -> int | None:
        """Return the process id of the worker's engine.

        None until the next job if one was cancelled while it was loaded, which ends the engine.
        """
        pids = children(self.parts()["worker"])
        return next((pid for pid in pids if _ENGINE in command_line(pid)), None)

    def failures(self) -> set[str]:
        """Return the codes of the hostile tenant's failed jobs."""
        return {job["error"]["code"] for job in self._hostile_jobs() if job["error"] is not None}

    def engines_lost(self) -> int:
        """Return how many engines have died during a job, or stopped responding."""
        with self._tables() as database, database.read() as session:
            return measure(session).counters[ENGINE_CRASHES]

    def _hostile_jobs(self) -> list[dict[str, Any]]:
        headers = self.hostile.headers
        answer = self.client.get(f"{self.url}/jobs", params={"limit": 100}, headers=headers)
        jobs: list[dict[str, Any]] = answer.json()["data"]
        return jobs

    def keep_workers_from(self, tenant: Tenant) -> None:
        """Let no job of a tenant run."""
        self._set_quotas(tenant, max_running=0)

    def _set_quotas(self, tenant: Tenant, **quotas: int | None) -> None:
        with self._tables() as database, database.write() as session:
            of_tenant = TenantRow.id == tenant.member.tenant_id
            session.execute(sa.update(TenantRow).where(of_tenant).values(**quotas))

    def _tables(self) -> closing[Database]:
        url = settings_of(self.deployment).database_url
        return closing(Database(url, pool_size=1))


@contextmanager
def neighbours(home: Path) -> Iterator[Neighbours]:
    """Run ``hifi serve`` with artifacts on an S3 server until a block ends."""
    port = free_loopback_port()
    with _neighbours(home, f"http://127.0.0.1:{port}", PORT=str(port)) as (found, are_ready):
        found.deployment.start("serve")
        are_ready()
        yield found


@contextmanager
def production(home: Path) -> Iterator[Neighbours]:
    """Run two of each process, on Postgres, Redis and an S3 server, until a block ends."""
    with running(RedisServer) as redis, running(PostgresServer) as postgres:
        gateways, inference = ([free_loopback_port() for _ in range(2)] for _ in range(2))
        addresses = [f"http://127.0.0.1:{port}" for port in inference]
        settings = {
            "DATABASE_URL": postgres.url,
            "BROKER_URL": redis.url,
            "INFER_URL": ",".join(addresses),
            "INFER_TOKEN": "t" * 32,
        }
        urls = [f"http://127.0.0.1:{port}" for port in gateways]
        with _neighbours(home, *urls, **settings) as (found, are_ready):
            starts = [
                *((("serve", "--only", "gateway"), {"HIFI_PORT": str(port)}) for port in gateways),
                *((("worker",), {}) for _ in range(2)),
                *((("infer",), {"HIFI_INFER_LISTEN": address}) for address in addresses),
            ]
            for number, (command, variables) in enumerate(starts):
                own = {"HIFI_HOME": str(home.parent / f"home-{number}")}
                found.deployment.start(*command, **own, **variables)
            are_ready()
            yield found


@contextmanager
def _neighbours(
    home: Path, *gateways: str, **settings: str
) -> Iterator[tuple[Neighbours, Callable[[], None]]]:
    """Prepare a deployment with two tenants.

    Yields:
        It, and what to call as soon as its processes are started.
    """
    settings |= {
        "AUTH": "keys",
        "DEVICE": "cpu",
        "ENGINE_MEMORY_BYTES": str(ENGINE_BYTES),
        "INFER_MEMORY_BYTES": str(INFERENCE_BYTES),
    }
    with (
        slow_store() as store,
        patch.dict(os.environ, store.environment),
        deployed(home, **settings, ARTIFACTS_URL=store.url) as deployment,
        httpx2.Client(timeout=patience(120)) as client,
    ):
        deployment.run("migrate")
        tenants = add_finished(deployment, "hostile", "other")
        found = Neighbours(deployment, client, gateways, store, **tenants)
        found.keep_workers_from(found.other)

        def wait() -> None:
            for url in gateways:
                deployment.wait_for(partial(is_ready, url), seconds=300, message="ready")
            found.dataset = found.call("POST", "/datasets", files=FILES).json()["id"]

        yield found, wait
