from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.operations import routes as operations
from store.database.schema import downgrade
from store.jobs.leases import Progress
from store.jobs.workers import register
from tests.service.gateways import Member, opened, problem_of, settings_for
from tests.service.operations.test_metrics import samples, value
from tests.service.work import running_job
from tests.store.queues import add_job
from tests.waiting import eventually, within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.testclient import TestClient

    from store.database.connection import Database
    from store.settings import Settings


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port on which a socket listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def set_s3(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, text in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, text)


class TestHealth:
    def test_needs_no_key(self, client: TestClient):
        answer = client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


class TestReadiness:
    def test_names_what_is_missing_behind_a_working_gateway(
        self, client: TestClient, database: Database
    ):
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {"status": "ready", "degraded": ["worker", "inference"]}
        register(database, worker_id="w", device="cpu", backbones=["minilm"], allows_hub=False)
        time.sleep(1.1)  # an answer is good for a second
        assert client.get("/readyz").json()["degraded"] == ["inference"]

    def test_is_degraded_without_a_broker(
        self, tmp_path: Path, sqlite_url: str, database: Database, closed_port: int
    ):
        register(database, worker_id="w", device="cpu", backbones=["minilm"], allows_hub=False)
        settings = settings_for(
            tmp_path / "home", sqlite_url, broker_url=f"redis://127.0.0.1:{closed_port}/0"
        )
        with opened(settings) as client:
            # On a busy machine the tables may answer later than a check waits for them.
            eventually(lambda: client.get("/readyz").json()["degraded"] == ["broker", "inference"])
            assert client.get("/readyz").status_code == 200

    @pytest.mark.parametrize("port", ["closed_port", "silent_port"])
    def test_fails_in_bounded_time_without_its_artifact_store(
        self,
        settings: Settings,
        database: Database,  # noqa: ARG002 - made first
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
        port: str,
    ):
        set_s3(monkeypatch, request.getfixturevalue(port))
        settings = settings.model_copy(update={"artifacts_url": "s3://bucket/prefix"})
        with opened(settings) as client, within(4):
            answer = client.get("/readyz")
        assert answer.status_code == 503
        document = answer.json()
        assert document["code"] == "unavailable"
        assert document["failing"] == ["artifacts"]
        assert "127.0.0.1" not in answer.text

    def test_fails_when_the_tables_are_not_of_this_version(
        self, client: TestClient, settings: Settings
    ):
        downgrade(settings.database_url, revision="base")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["failing"] == ["tables"]


class TestMetrics:
    def test_match_the_database(
        self, client: TestClient, database: Database, alice: Member, admin: Member
    ):
        _, lease = running_job(database, alice.tenant_id)
        lease.report(Progress(steps_per_second=2.5))
        for _ in range(3):
            add_job(database, alice.tenant_id)
        register(database, worker_id="w", device="cpu", backbones=["minilm"], allows_hub=False)
        time.sleep(0.05)
        answer = client.get("/metrics", headers=admin.headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = answer.content
        assert value(text, "hifi_jobs", state="queued") == 3
        assert value(text, "hifi_jobs", state="validating") == 1
        assert value(text, "hifi_jobs", state="succeeded") == 0
        age = value(text, "hifi_queue_age_seconds")
        assert age is not None
        assert 0.04 < age < 30
        assert value(text, "hifi_steps_per_second") == 2.5
        assert value(text, "hifi_workers") == 1
        assert value(text, "hifi_lease_losses_total") == 0

    def test_report_missing_tables(
        self, client: TestClient, admin: Member, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(_session: object) -> None:
            raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

        monkeypatch.setattr(operations, "measure", fail)
        answer = client.get("/metrics", headers=admin.headers)
        assert answer.status_code == 200
        assert value(answer.content, "hifi_database_up") == 0
        assert b"hifi_jobs" not in answer.content

    def test_show_latencies_by_route_and_never_by_path(
        self, client: TestClient, alice: Member, admin: Member
    ):
        client.get("/jobs/job_123", headers=alice.headers)
        client.get("/no/such/job_456")
        text = client.get("/metrics", headers=admin.headers).content
        counts: dict[Any, float] = {
            tuple(sorted(dict(labels).values())): count
            for (name, labels), count in samples(text).items()
            if name == "hifi_http_request_duration_seconds_count"
        }
        assert counts["/jobs/{job_id}", "404", "GET"] == 1
        assert b"job_123" not in text
        assert b"job_456" not in text

    def test_are_the_administrators(self, client: TestClient, alice: Member):
        assert problem_of(client.get("/metrics"))["status"] == 401
        refused = problem_of(client.get("/metrics", headers=alice.headers))
        assert (refused["status"], refused["code"]) == (403, "forbidden")
