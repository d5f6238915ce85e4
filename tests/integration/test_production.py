"""The commands of docker-compose.yml, run on a local Redis, Postgres and S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from moto.server import ThreadedMotoServer

from service.client import ApiError, Client
from service.embedded.listening import free_loopback_port
from store.queue import make_app
from store.settings import Settings
from tests.integration.deployment import QUICK, Deployment, deployed, is_ready
from tests.integration.jobs import write_splits
from tests.integration.servers import PostgresServer, RedisServer, running
from tests.root import ROOT
from tests.waiting import eventually, patience, within

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("production"),
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SPEC: dict[str, Any] = {
    "model": "all-MiniLM-L6-v2",
    "k": 1,
    "n_samples": 64,
    "training": {"epochs": 2, "batch_size": 8, "max_length": 32, "precision": "float32"},
}


def command(service: str) -> list[str]:
    """Return the command of one of our services."""
    words: list[str] = COMPOSE["services"][service]["command"]
    return words


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Run an S3 server with a bucket; yield the variables that processes need for it."""
    import boto3  # noqa: PLC0415 - comes with moto

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "hifi",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="hifi",
        aws_secret_access_key="secret",  # noqa: S106 - of a server of this test
    )
    client.create_bucket(Bucket="hifi")
    try:
        yield variables
    finally:
        server.stop()


class Site:
    """Every process of production, one of each kind, and an administrator's client."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        deployment.run(*command("migrate"))
        for service in ("gateway", "worker", "inference"):
            deployment.start(*command(service))
        port = deployment.environment["HIFI_PORT"]
        self.url = f"http://127.0.0.1:{port}"
        root = json.loads(deployment.run("tenants", "create", "root", "--admin", "--json"))
        key = json.loads(deployment.run("tenants", "keys", "create", root["id"], "--json"))
        self.secret: str = key["secret"]
        self.admin = Client(self.url, api_key=self.secret)
        deployment.wait_for(lambda: is_ready(self.url), message="ready")

    def tenant(self, name: str) -> Client:
        """Create a tenant; return a client with its key."""
        tenant = self.admin.tenants.create(name)
        key = self.admin.keys.create(tenant["id"])
        return Client(self.url, api_key=key["secret"])

    def is_healthy(self, service: str) -> bool:
        """Run a service's health check as its container would."""
        check = COMPOSE["services"][service]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "python"]
        done = subprocess.run(
            [sys.executable, *check[2:]], env=self.deployment.environment, check=False
        )
        return done.returncode == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("production")
    with running(RedisServer) as redis, running(PostgresServer) as postgres, bucket() as variables:
        settings = {
            **QUICK,
            "DATABASE_URL": postgres.url,
            "BROKER_URL": redis.url,
            "ARTIFACTS_URL": "s3://hifi",
            "AUTH": "keys",
            "PORT": str(free_loopback_port()),
            "INFER_URL": f"http://127.0.0.1:{free_loopback_port()}",
            "INFER_TOKEN": "t" * 32,
            "LOG_FORMAT": "json",
        }
        with deployed(folder / "home", **settings) as deployment:
            deployment.environment.update(variables)
            yield Site(deployment)


@pytest.fixture(scope="module")
def finished(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Client, Any, Any]:
    client = site.tenant("acme")
    train, validation = write_splits(tmp_path_factory.mktemp("data"))
    dataset = client.datasets.push(train, validation=validation)
    job = client.jobs.create({**SPEC, "dataset": dataset["id"]})
    for _ in client.jobs.watch(job["id"]):
        pass
    done = client.jobs.get(job["id"])
    assert done["status"] == "succeeded", done["error"]
    return client, dataset, done


class TestMainJob:
    def test_runs_and_its_delta_comes_from_s3(self, site: Site, finished, tmp_path: Path):
        client, _, job = finished
        file = tmp_path / "delta.safetensors"
        download = client.jobs.download_delta(job["id"], file)
        assert download.sha256 == job["artifact"]["sha256"]
        assert site.admin.tenants.usage(job["tenant"])["jobs"]["succeeded"] == 1

    def test_its_merged_model_comes_from_the_inference_process(self, finished, tmp_path: Path):
        client, _, job = finished
        client.jobs.download_merged(job["id"], tmp_path / "merged.tar")
        assert (tmp_path / "merged.tar").stat().st_size > 80_000_000

    def test_is_invisible_to_other_tenants(self, site: Site, finished, tmp_path: Path):
        _, dataset, job = finished
        other = site.tenant("other")
        for ask in (
            lambda: other.jobs.get(job["id"]),
            lambda: other.jobs.heads(job["id"]),
            lambda: other.datasets.get(dataset["id"]),
            lambda: other.jobs.download_delta(job["id"], tmp_path / "x"),
            lambda: other.jobs.download_merged(job["id"], tmp_path / "x"),
        ):
            with pytest.raises(ApiError) as caught:
                ask()
            assert (caught.value.status, caught.value.code) == (404, "not_found")


class TestOperations:
    @pytest.mark.parametrize("service", ["gateway", "worker", "inference"])
    def test_health_checks_of_the_containers_pass(self, site: Site, service: str):
        assert site.is_healthy(service)

    def test_the_worker_answers_a_ping_while_a_job_trains(self, site: Site, finished):
        client, dataset, _ = finished
        long = {**SPEC["training"], "epochs": 100}
        job = client.jobs.create({**SPEC, "dataset": dataset["id"], "training": long})
        for event in client.jobs.watch(job["id"]):
            if event["type"] == "step":
                break
        environment = site.deployment.environment
        app = make_app(
            Settings(home=site.deployment.home, broker_url=environment["HIFI_BROKER_URL"])
        )
        app.control.inspect(timeout=1.0).ping()  # connects
        with within(1.0):
            answers = app.control.inspect(timeout=patience(1.0), limit=1).ping()
        assert [list(answer.values()) for answer in (answers or {}).values()] == [["pong"]]
        client.jobs.cancel(job["id"])
        *_, last = client.jobs.watch(job["id"])
        assert last["data"]["status"] == "cancelled"

    def test_is_claimed_soon_after_the_post(self, site: Site, finished):
        client, dataset, _ = finished
        waits = []
        for _ in range(5):
            site.deployment.wait_for(
                lambda: client.jobs.list(limit=1)["data"][0]["finished_at"], message="idle"
            )
            job = client.jobs.create({**SPEC, "dataset": dataset["id"], "name": "wait"})
            started = time.perf_counter()
            eventually(lambda job=job: client.jobs.get(job["id"])["status"] != "queued")
            waits.append(time.perf_counter() - started)
            client.jobs.cancel(job["id"])
        assert min(waits) < patience(1.0)  # benchmarks/ measures it; here is no quiet machine

    def test_logs_are_json_without_keys_or_rows(self, site: Site, finished):
        assert finished
        for path in site.deployment.home.glob("*.log"):
            text = path.read_text()
            assert site.secret not in text
            assert "dull" not in text  # a word of the data
        gateway = (site.deployment.home / "serve-0.log").read_text().splitlines()
        lines = [json.loads(line) for line in gateway if line.startswith("{")]
        assert any({"request_id", "tenant", "path"} <= line.keys() for line in lines)

    def test_metrics_are_the_administrators(self, site: Site, finished):
        _, _, job = finished
        assert job["status"] == "succeeded"
        assert httpx2.get(f"{site.url}/metrics").status_code == 401
        answer = httpx2.get(
            f"{site.url}/metrics", headers={"Authorization": f"Bearer {site.secret}"}
        )
        assert 'hifi_jobs{state="succeeded"} ' in answer.text
        assert "hifi_http_request_duration_seconds_bucket" in answer.text
        assert "hifi_workers 1.0" in answer.text
