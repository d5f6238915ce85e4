"""The service's processes for a measurement, started as an operator starts them, and their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx2

from benchmarks.service.claims import fresh_database
from service.embedded.listening import free_loopback_port
from store.database import Database
from store.tenants import create_key, create_tenant
from store.workers import put_backbone

if TYPE_CHECKING:
    from service.client import Client
    from store.workers import BackboneDescription

T = TypeVar("T")
# What computes gets as many threads in the service as outside of it.
THREADS = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
_START_SECONDS = 300.0  # the first start compiles every module of torch and transformers
_END_SECONDS = 60.0
_SHOWN_LETTERS = 3000


class Deployment:
    """A home, settings for it, and processes that end with the measurement.

    Args:
        home: HIFI_HOME; what the processes say goes to files in it.
        settings: further ``HIFI_…`` variables, without the prefix.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.port = free_loopback_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {name: value for name, value in os.environ.items() if name[:5] != "HIFI_"}
        self.environment = {
            **given,
            "OMP_NUM_THREADS": THREADS,
            "HIFI_HOME": str(home),
            "HIFI_PORT": str(self.port),
            "HIFI_DEVICE": "cpu",
            **{f"HIFI_{name}": value for name, value in settings.items()},
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start ``hifi COMMAND`` in the background."""
        with (self.home / f"{len(self.processes)}-{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "hifi.cli", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def wait_until_ready(self, *, without: Sequence[str] = ()) -> None:
        """Wait until the gateway answers and misses nothing but what is named."""

        def is_ready() -> bool:
            try:
                answer = httpx2.get(f"{self.url}/readyz", trust_env=False)
            except httpx2.TransportError:
                return False
            return answer.is_success and set(answer.json()["degraded"]) <= set(without)

        self.wait_for(is_ready, message="a service that is ready")

    def wait_for(
        self, what: Callable[[], T | None], *, message: str, seconds: float = _START_SECONDS
    ) -> T:
        """Wait until a function gives something true.

        Raises:
            RuntimeError: a process has ended, or it takes too long; with what was said.
        """
        deadline = time.monotonic() + seconds
        while not (found := what()):
            ended = any(process.poll() is not None for process in self.processes)
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"no {message}\n{self._logs()}")
            time.sleep(0.05)
        return found

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-_SHOWN_LETTERS:]}"
            for path in sorted(self.home.glob("*.log"))
        )

    def close(self) -> None:
        """End every process that still runs."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def deployed(**settings: str) -> Iterator[Deployment]:
    """Give a deployment in a folder of its own, which ends however the block ends."""
    with tempfile.TemporaryDirectory(prefix="hifi-bench-") as folder:
        deployment = Deployment(Path(folder), **settings)
        try:
            yield deployment
        finally:
            deployment.close()


@contextmanager
def embedded() -> Iterator[Deployment]:
    """Run the whole embedded service: SQLite, a folder, the embedded broker."""
    with deployed() as deployment:
        deployment.start("serve")
        deployment.wait_until_ready()
        yield deployment


@contextmanager
def networked(**settings: str) -> Iterator[Deployment]:
    """Give a deployment on Postgres and Redis, both empty; nothing of ours is started yet."""
    with (
        fresh_database() as database_url,
        _redis() as broker_url,
        deployed(DATABASE_URL=database_url, BROKER_URL=broker_url, **settings) as deployment,
    ):
        yield deployment


@contextmanager
def database_of(deployment: Deployment) -> Iterator[Database]:
    """Open the tables of a deployment."""
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
    """Run one gateway that asks for keys, on Postgres and Redis, with no worker.

    Args:
        tenants: how many there are.
        backbone: the one that jobs may name, as a worker would have told.

    Yields:
        The deployment, the gateway's process, and a key of each tenant.
    """
    with networked(AUTH="keys", TENANT_MAX_QUEUED="1000000", LOG_FORMAT="json") as deployment:
        with database_of(deployment) as database:
            put_backbone(database, backbone)
            with database.write() as session:
                owners = [create_tenant(session, f"tenant {n}") for n in range(tenants)]
                secrets = [create_key(session, owner.id)[1] for owner in owners]
        process = deployment.start("serve", "--only", "gateway")
        deployment.wait_until_ready(without=("worker", "inference", "broker"))
        yield deployment, process, secrets


@contextmanager
def _redis() -> Iterator[str]:
    """Run a Redis that keeps nothing on disk; give its URL."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("no redis-server on this machine")
    port = free_loopback_port()
    with tempfile.TemporaryDirectory(prefix="hifi-redis-") as folder:
        flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            wait_for_port(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def wait_for_port(port: int) -> None:
    """Wait until somebody listens on a port of the loopback interface."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def resident_megabytes(pid: int) -> float:
    """Read a process's resident memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def family(pid: int) -> list[int]:
    """List a process and all that it has started, itself first."""
    found = [pid]
    for member in found:  # grows while it is walked
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process and its family for the time of a block, so that they take no time of it."""
    pids = family(pid)
    for member in pids:
        os.kill(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in pids:
            os.kill(member, signal.SIGCONT)


def push_words(client: Client, folder: Path, *, rows: int = 160) -> str:
    """Upload a small data set of two classes; give its id."""
    file = folder / "words.jsonl"
    words = (("dull", "slow", "flat"), ("bright", "quick", "rich"))
    documents = [
        {"text": f"it is {words[n % 2][n % 3]} and number {n}", "label": n % 2} for n in range(rows)
    ]
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
    return str(client.datasets.push(file)["id"])
