"""Uploads when a gateway is killed, next to another one with the same home."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from service.embedded.listening import free_loopback_port
from tests.integration.deployment import Deployment, children, deployed, kill
from tests.repeated_rows import repeated_rows
from tests.waiting import patience

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

ROWS = 4_000_000  # many seconds of work, in a small file


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path / "home") as deployment:
        deployment.run("migrate")
        yield deployment


class Gateway:
    """A gateway on a port of its own, in a home that it may share."""

    def __init__(self, deployment: Deployment) -> None:
        port = str(free_loopback_port())
        self.process = deployment.start("serve", "--only", "gateway", HIFI_PORT=port)
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=patience(120))
        deployment.wait_for(self._answers, message="a gateway")

    def _answers(self) -> bool:
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def post(self, content: bytes, *, key: str) -> httpx2.Response:
        files = {"train": ("train.parquet", content)}
        headers = {"Idempotency-Key": key}
        return self.client.post("/datasets", files=files, headers=headers)

    def start_post(self, content: bytes, *, key: str) -> Future[httpx2.Response]:
        """Post from a thread, which ends with the gateway."""
        pool = ThreadPoolExecutor(1)
        answer = pool.submit(self.post, content, key=key)
        pool.shutdown(wait=False)
        return answer


def test_of_a_killed_gateway_is_taken_over_and_leaves_nothing(
    deployment: Deployment,
):
    slow_file = repeated_rows("the same", rows=ROWS)
    uploads = deployment.home / "uploads"
    killed, other = Gateway(deployment), Gateway(deployment)
    posts = []
    for gateway in (killed, other):
        posts.append(gateway.start_post(slow_file, key=str(id(gateway))))
        deployment.wait_for(
            lambda gateway=gateway: children(gateway.process.pid), message="a conversion"
        )
    (converter,) = children(killed.process.pid)
    kill([killed.process.pid])
    killed.process.wait()
    began = time.monotonic()
    next_one = Gateway(deployment)
    assert len(list(uploads.iterdir())) == 2  # the next one's, and the living one's
    assert isinstance(posts[0].exception(), httpx2.TransportError)
    assert posts[1].result().status_code == 201  # its files are still there
    answer = next_one.post(slow_file, key=str(id(killed)))
    assert answer.status_code == 201, answer.text
    assert "idempotent-replayed" not in answer.headers
    assert answer.json()["splits"]["train"]["rows"] == ROWS
    assert next_one.post(slow_file, key=str(id(killed))).content == answer.content
    assert not Path(f"/proc/{converter}").exists()
    assert time.monotonic() - began < patience(120)  # of which the lock is fifteen
