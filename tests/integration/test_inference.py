"""Real inference processes: killed under load, divided between, stalled, and asked for too much."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from PIL import Image

from service.embedded.listening import free_loopback_port
from store.orders import MAX_CHARACTERS, MAX_INPUTS, MAX_SECONDS
from tests.integration.deployment import Deployment, children, deployed, is_ready, peak_megabytes
from tests.integration.finished import Tenant, add_finished
from tests.integration.served import command_line
from tests.waiting import eventually, patience

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("inference"),
]
INPUTS = [
    {"text": text} for text in ("it is bright", "a dull and slow one", "strong", "flat " * 30)
]


def wait_until_ready(deployment: Deployment, url: str, *, without: set[str]) -> None:
    """Wait until the gateway has everything but these parts."""
    deployment.wait_for(lambda: is_ready(url, without=without), seconds=180, message="ready")


@dataclass
class Load:
    """Clients that ask without a pause until they are stopped, and their answers by status."""

    url: str
    tenant: Tenant
    clients: int = 8
    statuses: Counter[int] = field(default_factory=Counter)
    answers: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Start the clients."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the clients and wait for their answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx2.Client(timeout=patience(60)) as client:
            while not self._stop.is_set():
                answer = client.post(
                    f"{self.url}/jobs/{self.tenant.jobs[0]}/predict",
                    json={"inputs": INPUTS, "timeout_seconds": min(patience(30), MAX_SECONDS)},
                    headers=self.tenant.headers,
                )
                self.statuses[answer.status_code] += 1
                if answer.is_success:
                    items = answer.json()["data"]
                    self.answers.add(str([item.get("label", item) for item in items]))


class TestKilledUnderLoad:
    def test_no_request_hears_of_it(self, tmp_path: Path):
        port = free_loopback_port()
        url = f"http://127.0.0.1:{port}"
        with deployed(tmp_path, AUTH="keys", DEVICE="cpu", PORT=str(port)) as deployment:
            deployment.run("migrate")
            tenant = add_finished(deployment, "acme")["acme"]
            supervisor = deployment.start("serve")
            wait_until_ready(deployment, url, without={"worker"})

            def inference() -> int | None:
                parts = children(supervisor.pid)
                return next((pid for pid in parts if "infer" in command_line(pid)), None)

            with Load(url, tenant) as load:
                for _ in range(2):
                    before = load.statuses[200]
                    eventually(lambda n=before: load.statuses[200] > n + 20, seconds=120)
                    killed = inference()
                    assert killed is not None
                    os.kill(killed, signal.SIGKILL)
                    eventually(lambda old=killed: inference() not in (None, old), seconds=60)
                before = load.statuses[200]
                eventually(lambda: load.statuses[200] > before + 20, seconds=120)
            assert load.statuses.keys() == {200}, load.statuses
            assert len(load.answers) == 1


@dataclass(frozen=True)
class Pair:
    """A gateway and two inference processes.

    Attributes:
        deployment: their home.
        url: of the gateway.
        addresses: of the inference processes.
        processes: the inference processes.
        tenants: ``one`` and ``two``, each with six jobs.
    """

    deployment: Deployment
    url: str
    addresses: list[str]
    processes: list[subprocess.Popen[bytes]]
    tenants: dict[str, Tenant]

    def mixed(self, *, name: str = "one") -> Any:
        """Ask for a prediction of every job of a tenant at once."""
        tenant = self.tenants[name]
        inputs = [{"job": job, "input": given} for given in INPUTS for job in tenant.jobs]
        answer = httpx2.post(
            f"{self.url}/predict",
            json={"inputs": inputs, "timeout_seconds": 120},
            headers=tenant.headers,
            timeout=patience(120),
        )
        assert answer.status_code == 200, answer.text
        items = answer.json()["data"]
        assert [item["job"] for item in items] == [given["job"] for given in inputs]
        return items

    def deltas(self) -> list[int]:
        """Return how many head deltas each live process has in memory."""
        found = []
        for address in self.addresses:
            try:
                text = httpx2.get(f"{address}/metrics", timeout=patience(5)).text
            except httpx2.TransportError:
                continue
            lines = [line for line in text.splitlines() if 'deltas{tier="device"}' in line]
            found += [int(float(line.split()[-1])) for line in lines]
        return found

    def up(self) -> list[float]:
        """Return which processes the gateway uses, from its metrics."""
        headers = self.tenants["ops"].headers
        found = httpx2.get(f"{self.url}/metrics", headers=headers, timeout=patience(5))
        lines = [line for line in found.text.splitlines() if line.startswith("hifi_inference_up{")]
        assert [address in line for address, line in zip(self.addresses, lines, strict=True)]
        return [float(line.split()[-1]) for line in lines]


def check_same(items: list[Any], others: list[Any]) -> None:
    """Assert that answers are equal up to rounding, which depends on the rest of a batch."""
    for item, other in zip(items, others, strict=True):
        assert item["job"] == other["job"]
        assert item["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    port = free_loopback_port()
    url = f"http://127.0.0.1:{port}"
    addresses = [f"http://127.0.0.1:{free_loopback_port()}" for _ in range(2)]
    settings = {"AUTH": "keys", "DEVICE": "cpu", "PORT": str(port), "TENANT_MAX_RUNNING": "1"}
    home = tmp_path_factory.mktemp("pair")
    with deployed(home, **settings, INFER_URL=",".join(addresses)) as deployment:
        deployment.run("migrate")
        tenants = add_finished(deployment, "one", "two", jobs=6)
        tenants |= add_finished(deployment, "ops", jobs=0, is_admin=True)
        deployment.start("serve", "--only", "gateway")
        processes = [deployment.start("infer", "--listen", address) for address in addresses]
        wait_until_ready(deployment, url, without={"worker", "broker"})
        found = Pair(deployment, url, addresses, processes, tenants)
        deployment.wait_for(lambda: len(found.deltas()) == 2, seconds=180, message="both")
        yield found


class TestTwoProcesses:
    def test_share_the_deltas_and_one_takes_over_from_the_other(self, pair: Pair):
        before = pair.mixed()
        assert all("label" in item for item in before)
        shares = pair.deltas()
        assert sum(shares) == len(pair.tenants["one"].jobs)
        assert min(shares) > 0
        pair.processes[0].send_signal(signal.SIGKILL)
        pair.processes[0].wait()
        check_same(pair.mixed(), before)
        assert pair.up() == [0.0, 1.0]
        ready = httpx2.get(f"{pair.url}/readyz", timeout=patience(5))
        assert "inference" not in ready.json()["degraded"]
        pair.processes[0] = pair.deployment.start("infer", "--listen", pair.addresses[0])
        pair.deployment.wait_for(lambda: pair.up() == [1.0, 1.0], seconds=120, message="return")
        check_same(pair.mixed(), before)
        assert pair.deltas()[0] == shares[0]

    def test_a_process_of_several_must_know_its_own_address(self, pair: Pair):
        done = subprocess.run(
            [sys.executable, "-m", "hifi.cli", "infer"],
            env=pair.deployment.environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=patience(60),
        )
        assert done.returncode == 1
        assert "names 2 inference processes: set HIFI_INFER_LISTEN, or --listen" in done.stderr


class Alone:
    """One inference process on a Unix socket, asked as a gateway asks it."""

    def __init__(self, deployment: Deployment, path: Path, tenants: dict[str, Tenant]) -> None:
        self.path = path
        self.deployment = deployment
        self.tenants = tenants
        self.process = deployment.processes[-1]
        self.client = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(path)),
            base_url="http://inference",
            timeout=patience(120),
        )

    def predict(self, name: str, *inputs: Any) -> Any:
        """Return the answers to inputs, or the problem."""
        items = [{"order": 0, "input": given} for given in inputs]
        orders = [self.tenants[name].orders[0].model_dump()]
        body = {"orders": orders, "items": items, "truncate": True}
        return self.client.post("/predict", json={**body, "timeout_seconds": 120.0}).json()

    @property
    def megabytes(self) -> float:
        """The largest resident memory so far."""
        return peak_megabytes(self.process.pid)


QUICK_STALL = """
import sys
from worker.inference import stalling
stalling.STALL_SECONDS = 2.0
from hifi.cli import main
sys.exit(main(["infer"]))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    with tempfile.TemporaryDirectory(prefix="hifi-") as short:
        path = Path(short) / "infer.sock"
        home = tmp_path_factory.mktemp("alone")
        with deployed(home, DEVICE="cpu", INFER_URL=f"unix://{path}") as deployment:
            deployment.run("migrate")
            tenants = add_finished(deployment, "one", "two")
            with (home / "infer.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", QUICK_STALL],
                    env=deployment.environment,
                    stdout=log,
                    stderr=log,
                )
            deployment.processes.append(process)
            deployment.wait_for(path.exists, seconds=180, message="the socket")
            yield Alone(deployment, path, tenants)


class TestModelsThatNobodyReads:
    def test_are_ended_and_hold_up_no_other_tenant(self, alone: Alone):
        stuck = []
        one, two = (alone.tenants[name].orders[0].to_json() for name in ("one", "two"))
        request = b"POST /merged HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(one)
        for _ in range(4):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(alone.path))
            connection.sendall(request + one)
            stuck.append(connection)
        folder = alone.deployment.home / "inference"
        eventually(lambda: list(folder.glob("*/models/*")), seconds=120)
        # Another tenant's prediction and model go on.
        assert "label" in alone.predict("two", INPUTS[0])["data"][0]
        merged = alone.client.post("/merged", content=two)
        assert merged.status_code == 200
        assert len(merged.content) > 80_000_000
        # Their files and places are free again, although the sockets are open.
        eventually(lambda: not list(folder.glob("*/models/*")), seconds=120)
        assert alone.client.post("/merged", content=one).status_code == 200
        for connection in stuck:
            connection.close()


def bomb(side: int) -> str:
    """Return a small PNG of many pixels in base64."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class TestTooMuch:
    """The worst that a tenant can send; the process stays within its memory and goes on."""

    def test_texts_as_long_as_allowed(self, alone: Alone):
        alone.predict("one", INPUTS[0])
        before = alone.megabytes
        text = ("word " * MAX_CHARACTERS)[:MAX_CHARACTERS]
        answers = alone.predict("one", *[{"text": text}] * MAX_INPUTS)["data"]
        assert {"label" in answer for answer in answers} == {True}
        assert alone.megabytes - before < 700
        assert "label" in alone.predict("two", INPUTS[0])["data"][0]

    def test_longer_texts_are_refused(self, alone: Alone):
        answer = alone.predict("one", {"text": "a" * (MAX_CHARACTERS + 1)})
        assert answer["code"] == "invalid_request"

    def test_a_body_beyond_the_limit_is_refused_early(self, alone: Alone):
        before = alone.megabytes
        content = b'{"orders": "' + b"a" * (100 << 20)
        answer = alone.client.post("/predict", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert alone.megabytes - before < 250

    def test_bombs_of_pixels_are_errors_of_their_items(self, alone: Alone):
        before = alone.megabytes
        answers = alone.predict("one", *[{"image": bomb(20_000)}] * 16, INPUTS[0])["data"]
        assert [answer["error"]["code"] for answer in answers[:-1]] == ["invalid_input"] * 16
        assert "label" in answers[-1]
        assert alone.megabytes - before < 300

    def test_the_process_is_the_same(self, alone: Alone):
        time.sleep(0.1)
        assert alone.process.poll() is None
