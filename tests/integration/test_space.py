"""Two gateways, started as an operator starts them, and a tenant with a small quota."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from service.embedded.listening import free_loopback_port
from store.database.connection import Database
from store.storage import ArtifactStorage
from store.storage.space import end_expired, used_bytes
from store.storage.unnamed import remove_unnamed
from store.tables import Reservation
from tests.integration.deployment import Deployment, deployed
from tests.service.gateways import CSV, Member, add_member
from tests.waiting import patience

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("store")]
QUOTA = 1_000_000
UPLOAD = b"text,label\n" + b"".join(
    b"%s,%d\n" % (os.urandom(250).hex().encode(), row % 2) for row in range(1200)
)


class Site:
    """Two gateway processes on one home."""

    def __init__(self, deployment: Deployment) -> None:
        deployment.run("migrate")
        self.home = deployment.home
        self.database = Database(f"sqlite:///{deployment.home}/hifi.db")
        self.alice = add_member(self.database, "alice", max_bytes=QUOTA)
        self.ports = [free_loopback_port() for _ in range(2)]
        self.processes = [
            deployment.start("serve", "--only", "gateway", HIFI_PORT=str(port))
            for port in self.ports
        ]
        for port in self.ports:
            deployment.wait_for(lambda port=port: is_alive(port), message="gateway")

    def client(self, number: int) -> httpx2.Client:
        """Return a client of one of the gateways."""
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.ports[number]}",
            headers=self.alice.headers,
            timeout=patience(120),
        )

    def on_disk(self) -> int:
        """Count the bytes of blobs and of uploads in progress."""
        files = [*self.home.glob("artifacts/ten_*/*"), *self.home.glob("uploads/**/*")]
        return sum(map(size_of, files))

    def used(self) -> int:
        """Return what counts against the quota."""
        with self.database.read() as session:
            return used_bytes(session, self.alice.tenant_id)

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """Measure the bytes on the disk during a block, again and again."""
        seen, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                seen.append(self.on_disk())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            done.set()
            watcher.join()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def is_alive(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with deployed(tmp_path_factory.mktemp("space") / "home", AUTH="keys") as deployment:
        site = Site(deployment)
        yield site
        site.database.close()


def test_parallel_uploads_and_deletions_never_exceed_the_quota_by_more_than_one(site: Site):
    assert QUOTA / 2 < len(UPLOAD) < QUOTA

    def upload(number: int) -> int:
        with site.client(number % 2) as client:
            answer = client.post("/datasets", files={"train": ("train.csv", UPLOAD)})
            if answer.status_code == 201:
                path = answer.headers["location"]
                assert client.delete(path).status_code == 204
            return answer.status_code

    with site.watched() as seen, ThreadPoolExecutor(8) as pool:
        statuses = [status for _ in range(3) for status in pool.map(upload, range(8))]
    assert set(statuses) == {201, 403}
    assert max(seen) <= QUOTA + len(UPLOAD)
    assert (site.on_disk(), site.used()) == (0, 0)


def test_a_gateway_that_is_killed_takes_no_space_for_ever(site: Site):
    with socket.create_connection(("127.0.0.1", site.ports[0])) as line:
        begin_upload(line, site.alice)
        with site.client(1) as client:
            files = {"train": ("train.csv", UPLOAD)}
            assert client.post("/datasets", files=files).status_code == 403
            site.processes[0].send_signal(signal.SIGKILL)
            site.processes[0].wait()
            assert client.post("/datasets", files=files).status_code == 403
            with site.database.write() as session:  # some minutes pass
                long_ago = sa.func.datetime("2020-01-01")
                session.execute(sa.update(Reservation).values(expires_at=long_ago))
            answer = client.post("/datasets", files=files)
            assert answer.status_code == 201, answer.text
            assert client.delete(answer.headers["location"]).status_code == 204
    end_expired(site.database)
    storage = ArtifactStorage(str(site.home / "artifacts"))
    assert remove_unnamed(site.database, storage) == 0
    assert site.used() == 0


def begin_upload(line: socket.socket, member: Member) -> None:
    """Send the head of an upload and the first rows; wait until they are received."""
    body = b'--x\r\ncontent-disposition: form-data; name="train"; filename="a.csv"\r\n\r\n' + CSV
    head = [
        "POST /datasets HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: multipart/form-data; boundary=x",
        f"content-length: {len(UPLOAD)}",
        f"authorization: Bearer {member.secret}",
        "expect: 100-continue",
    ]
    line.sendall("\r\n".join([*head, "", ""]).encode())
    assert line.recv(1 << 10).startswith(b"HTTP/1.1 100")
    line.sendall(body)
