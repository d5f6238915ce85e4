"""Run the service's processes for a measurement, as an operator would."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.service.claims import migrated_postgres
from hifi.backbones.models import resolve_model
from hifi.backbones.packaged import PACKAGED_MODEL
from service.embedded.listening import free_loopback_port
from store.administration.keys import create_key
from store.database.connection import Database
from store.jobs.workers import put_backbone
from store.tenants import create_tenant
from tests.integration import deployment as processes
from tests.integration.servers import RedisServer, running
from tests.tiny_tasks import text_rows, write_jsonl
from worker.engine.descriptions import describe_backbone

if TYPE_CHECKING:
    from service.client import Client

# The same number of threads inside and outside the service.
THREADS = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
START_SECONDS = 300.0  # the first start compiles every module of torch and transformers


class Deployment(processes.Deployment):
    """Processes on the CPU with their own port."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.port = free_loopback_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(home, PORT=str(self.port), DEVICE="cpu", **settings)
        self.environment["OMP_NUM_THREADS"] = THREADS

    def wait_until_ready(self, *, without: Sequence[str] = ()) -> None:
        """Wait until the gateway is ready, apart from the components in ``without``."""
        self.wait_for(
            lambda: processes.is_ready(self.url, without=without),
            seconds=START_SECONDS,
            message="a service that is ready",
        )


def end_in_order() -> None:
    """Treat SIGTERM like Ctrl-C, so that the started processes end with this one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def deployed(**settings: str) -> Iterator[Deployment]:
    """Yield a deployment in a temporary folder; close it at the end of the block."""
    with (
        tempfile.TemporaryDirectory(prefix="hifi-bench-") as folder,
        closing(Deployment(Path(folder), **settings)) as started,
    ):
        yield started


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
        migrated_postgres() as database_url,
        running(RedisServer) as redis,
        deployed(DATABASE_URL=database_url, BROKER_URL=redis.url, **settings) as started,
    ):
        yield started


def database_of(deployment: Deployment) -> closing[Database]:
    """Open the database of a deployment, for a block."""
    url = deployment.environment.get("HIFI_DATABASE_URL", f"sqlite:///{deployment.home}/hifi.db")
    return closing(Database(url, pool_size=1))


@contextmanager
def gateway(*, tenants: int) -> Iterator[tuple[Deployment, list[str]]]:
    """Run a gateway on Postgres and Redis, without a worker; yield it and a key of each tenant."""
    backbone = describe_backbone(PACKAGED_MODEL, resolve_model(PACKAGED_MODEL).path)
    with networked(AUTH="keys", TENANT_MAX_QUEUED="1000000", LOG_FORMAT="json") as started:
        with database_of(started) as database:
            put_backbone(database, backbone)  # as a worker does
            with database.write() as session:
                owners = [create_tenant(session, f"tenant {n}") for n in range(tenants)]
                secrets = [create_key(session, owner.id)[1] for owner in owners]
        started.start("serve", "--only", "gateway")
        started.wait_until_ready(without=("worker", "inference", "broker"))
        yield started, secrets


def is_listening(port: int) -> bool:
    """Return whether a process listens on a port of the loopback interface."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Suspend a process and its descendants during a block, so that they use no CPU."""
    pids = [pid]
    for member in pids:  # the list grows during the loop
        os.kill(member, signal.SIGSTOP)
        pids += processes.children(member)
    try:
        yield
    finally:
        for member in pids:
            os.kill(member, signal.SIGCONT)


def push_words(client: Client) -> str:
    """Upload a small data set of two classes; return its id."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_jsonl(Path(folder) / "words.jsonl", text_rows(160))
        return str(client.datasets.push(file)["id"])
