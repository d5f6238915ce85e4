"""A real worker whose Redis, Postgres, artifact store or disk goes away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from store.states import JobStatus
from tests.full_disk import fill, small_disk
from tests.integration.deployment import QUICK, Deployment, deployed
from tests.integration.jobs import Desk
from tests.integration.servers import PostgresServer, RedisServer, Server, missing, running
from tests.waiting import patience

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("outages"),
]


class Plant:
    """A worker with its own Redis and Postgres, which a test may stop."""

    def __init__(self, deployment: Deployment, *, folder: Path, redis: Server, postgres: Server):
        self.deployment = deployment
        self.redis = redis
        self.postgres = postgres
        self.desk = Desk(deployment.environment)
        self.dataset = self.desk.push(folder)
        self.start_worker()
        job = self.desk.submit(self.dataset)
        assert self.ends(job) is JobStatus.SUCCEEDED, self.desk.job(job).error
        self.hashes = self.desk.hashes(job)
        self.events = sorted(self.desk.work_events(job), key=str)

    def start_worker(self, **variables: str) -> None:
        """Start a worker and wait until it is registered."""
        self.worker = self.deployment.start("worker", **variables)
        self.deployment.wait_for(self.desk.live_workers, message="sign-on")

    def stop_worker(self) -> None:
        """Stop the worker."""
        self.worker.terminate()
        assert self.worker.wait(timeout=patience(60)) == 0

    def training(self) -> str:
        """Start a job and wait until it trains; return its id."""
        job = self.desk.submit(self.dataset)
        self.deployment.wait_for(lambda: self.desk.is_at(job, "training"), message="training")
        return job

    def ends(self, job: str) -> JobStatus:
        """Wait until a job has ended."""
        return self.deployment.wait_for(
            lambda: self.desk.is_finished(job), message=f"end of {job}"
        ).status

    def check(self, job: str) -> None:
        """Assert that a job ended exactly as the undisturbed one."""
        assert self.ends(job) is JobStatus.SUCCEEDED, self.desk.job(job).error
        assert self.desk.hashes(job) == self.hashes
        assert sorted(self.desk.work_events(job), key=str) == self.events


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("outages")
    with running(RedisServer) as redis_server, running(PostgresServer) as postgres:
        addresses = {"DATABASE_URL": postgres.url, "BROKER_URL": redis_server.url}
        with deployed(folder / "home", **QUICK, **addresses) as deployment:
            deployment.run("migrate")
            plant = Plant(deployment, folder=folder, redis=redis_server, postgres=postgres)
            yield plant
            plant.desk.close()


class TestRedis:
    def test_flushed_while_jobs_wait(self, plant: Plant):
        jobs = [plant.training(), plant.desk.submit(plant.dataset)]
        redis.Redis.from_url(plant.redis.url).flushall()
        for job in jobs:
            plant.check(job)

    def test_restarted_while_a_job_trains(self, plant: Plant):
        job = plant.training()
        plant.redis.stop()
        plant.redis.start()
        plant.check(job)
        plant.check(plant.desk.submit(plant.dataset))

    def test_away_while_jobs_are_posted(self, plant: Plant):
        plant.redis.stop()
        jobs = [plant.desk.submit(plant.dataset) for _ in range(2)]
        plant.redis.start()
        for job in jobs:
            plant.check(job)

    def test_a_token_delivered_twice_or_late_changes_nothing(self, plant: Plant):
        job = plant.desk.submit(plant.dataset, tokens=5)
        plant.check(job)
        assert plant.desk.job(job).fence == 1


class TestPostgres:
    def test_restarted_while_a_job_trains(self, plant: Plant):
        job = plant.training()
        plant.postgres.stop()
        plant.postgres.start()
        plant.check(job)


class TestArtifactStore:
    def test_away_for_a_while(self, plant: Plant):
        folder = Path(plant.desk.settings.artifacts_url)
        away = folder.with_name("away")
        job = plant.training()
        folder.rename(away)
        folder.write_text("no folder: every write fails")
        plant.deployment.wait_for(
            lambda: "artifact store" in plant.deployment.logs(), message="the failure"
        )
        folder.unlink()
        away.rename(folder)
        plant.check(job)


class TestClock:
    def test_of_a_worker_may_be_wrong(self, plant: Plant):
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            missing("faketime")
        plant.stop_worker()
        plant.start_worker(LD_PRELOAD=str(libraries[0]), FAKETIME="+1h")
        job = plant.desk.submit(plant.dataset)
        plant.check(job)
        row = plant.desk.job(job)
        assert row.attempt == row.fence == 1
        assert row.finished_at is not None
        assert (row.finished_at - row.created_at).total_seconds() < 600
        plant.stop_worker()
        plant.start_worker()


class TestDisk:
    def test_full_while_a_checkpoint_is_written(self, plant: Plant, tmp_path: Path):
        folder = tmp_path / "home"
        disk = small_disk(folder / "work", megabytes=64)
        with deployed(folder, **_settings(plant)) as small, disk as work:
            plant.stop_worker()
            small.start("worker")
            job = plant.training()
            ballast = fill(work)
            small.wait_for(lambda: "disk_full" in small.logs(), message="the failure")
            ballast.unlink()
            plant.check(job)

    def test_full_while_artifacts_are_written(self, plant: Plant, tmp_path: Path):
        """The store's disk is full: artifacts and checkpoints wait for space."""
        folder = tmp_path / "home"
        disk = small_disk(folder / "artifacts", megabytes=64)
        with disk as artifacts, deployed(folder, **QUICK) as small:
            small.run("migrate")
            desk = Desk(small.environment)
            dataset = desk.push(tmp_path)
            small.start("worker")
            job = desk.submit(dataset)
            small.wait_for(lambda: desk.is_at(job, "training"), message="training")
            ballast = fill(artifacts)
            small.wait_for(lambda: "waiting for room" in small.logs(), message="the failure")
            assert desk.job(job).status is JobStatus.TRAINING
            ballast.unlink()
            end = small.wait_for(lambda: desk.is_finished(job), message="the end")
            assert end.status is JobStatus.SUCCEEDED
            assert desk.hashes(job) == plant.hashes
            desk.close()


def _settings(plant: Plant) -> dict[str, str]:
    names = ("DATABASE_URL", "BROKER_URL")
    return {
        **QUICK,
        **{name: plant.deployment.environment[f"HIFI_{name}"] for name in names},
        "ARTIFACTS_URL": plant.desk.settings.artifacts_url,
    }
