"""Run the service's processes for a measurement, as an operator would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from benchmarks.service.claims import fresh_database
from service.embedded.listening import free_loopback_port
from store.database.connection import Database
from store.jobs.workers import put_backbone
from store.tenants import create_key, create_tenant
from tests.integration import deployment as processes
from tests.integration.servers import RedisServer, running

if TYPE_CHECKING:
    from service.client import Client
    from store.jobs.workers import BackboneDescription

# The same number of threads inside and outside the service.
THREADS = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
START_SECONDS = 300.0  # the first start compiles every module of torch and transformers


class Deployment(processes.Deployment):
    """Processes on the CPU with their own port; they end with the measurement.

    Args:
        home: HIFI_HOME; the processes' output goes to files in it.
        settings: further ``HIFI_…`` variables, without the prefix.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.port = free_loopback_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(home, PORT=str(self.port), DEVICE="cpu", **settings)
        self.environment["OMP_NUM_THREADS"] = THREADS

    def wait_until_ready(self, *, without: Sequence[str] = ()) -> None:
        """Wait until the gateway is ready, apart from the components in ``without``."""

        def is_ready() -> bool:
            try:
                answer = httpx2.get(f"{self.url}/readyz", trust_env=False)
            except httpx2.TransportError:
                return False
            return answer.is_success and set(answer.json()["degraded"]) <= set(without)

        self.wait_for(is_ready, seconds=START_SECONDS, message="a service that is ready")


def end_in_order() -> None:
    """Treat SIGTERM like Ctrl-C, so that the started processes end with this one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def deployed(**settings: str) -> Iterator[Deployment]:
    """Yield a deployment in a temporary folder; close it at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="hifi-bench-") as folder:
        started = Deployment(Path(folder), **settings)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def embedded() -> Iterator[Deployment]:
    """Run the whole embedded service: SQLite, a folder, the embedded broker."""
    with deployed() as started:
        started.start("serve")
        started.wait_until_ready()
        yield started


@contextmanager
def networked(**settings: str) -> Iterator[Deployment]:
    """Yield a deployment on empty Postgres and Redis; none of our processes is started yet."""
    with (
        fresh_database() as database_url,
        running(RedisServer) as redis,
        deployed(DATABASE_URL=database_url, BROKER_URL=redis.url, **settings) as started,
    ):
        yield started


@contextmanager
def database_of(deployment: Deployment) -> Iterator[Database]:
    """Open the database of a deployment."""
    url = deployment.environment.get("HIFI_DATABASE_URL", f"sqlite:///{deployment.home}/hifi.db")
    database = Database(url, pool_size=1)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def gateway(
    *, tenants: int, backbone: BackboneDescription
) -> Iterator[tuple[Deployment, subprocess.Popen[bytes], list[str]]]:
    """Run one gateway with ``HIFI_AUTH=keys`` on Postgres and Redis, without a worker.

    Args:
        tenants: number of tenants.
        backbone: for jobs, as a worker would have described it.

    Yields:
        The deployment, the gateway's process, and a key of each tenant.
    """
    with networked(AUTH="keys", TENANT_MAX_QUEUED="1000000", LOG_FORMAT="json") as started:
        with database_of(started) as database:
            put_backbone(database, backbone)
            with database.write() as session:
                owners = [create_tenant(session, f"tenant {n}") for n in range(tenants)]
                secrets = [create_key(session, owner.id)[1] for owner in owners]
        process = started.start("serve", "--only", "gateway")
        started.wait_until_ready(without=("worker", "inference", "broker"))
        yield started, process, secrets


def is_listening(port: int) -> bool:
    """Return whether a process listens on a port of the loopback interface."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Suspend a process and its descendants during a block, so that they use no CPU."""
    pids = [pid]
    for member in pids:  # the list grows during the loop
        pids += processes.children(member)
    for member in pids:
        os.kill(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in pids:
            os.kill(member, signal.SIGCONT)


def push_words(client: Client, *, rows: int = 160) -> str:
    """Upload a small data set of two classes; return its id."""
    words = (("dull", "slow", "flat"), ("bright", "quick", "rich"))
    documents = [
        {"text": f"it is {words[n % 2][n % 3]} and number {n}", "label": n % 2} for n in range(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.jsonl"
        file.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
        return str(client.datasets.push(file)["id"])
