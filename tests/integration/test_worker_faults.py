"""Real workers and engines, killed, frozen or stopped: the job's result stays the same."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store.jobs.actions import cancel, pause, resume
from store.states import JobStatus
from tests.integration.deployment import QUICK, Deployment, children, deployed, kill
from tests.integration.jobs import Desk
from tests.integration.served import command_line
from tests.waiting import patience

DRAW = random.Random()  # noqa: S311 - moments, not secrets
PHASES = ("validating", "selecting", "training", "writing")
pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("faults")]


@dataclass
class Bench:
    """A deployment with one worker, and a desk to submit jobs."""

    deployment: Deployment
    desk: Desk
    dataset: str
    worker: subprocess.Popen[bytes]

    def engine(self) -> int:
        """Return the process id of the worker's engine, not of the nice one beside it."""

        def find() -> int | None:
            pids = children(self.worker.pid)
            return next((pid for pid in pids if command_line(pid).endswith(" 0 ")), None)

        return self.deployment.wait_for(find, message="engine")

    def kill_worker(self) -> None:
        """Kill the worker; wait until its engine has ended too."""
        engine = self.engine()
        kill([self.worker.pid])
        self.worker.wait()
        self.deployment.wait_for(
            lambda: not Path(f"/proc/{engine}").exists(), message="end of the engine"
        )

    def new_worker(self, **variables: str) -> None:
        """Start another worker."""
        self.worker = self.deployment.start("worker", **variables)

    def replace_worker(self, **variables: str) -> None:
        """Stop the worker cleanly and start another."""
        self.worker.terminate()
        self.worker.wait()
        self.new_worker(**variables)

    def wait_until(self, job: str, phase: str) -> None:
        """Wait until a job has reached a phase."""
        self.deployment.wait_for(lambda: self.desk.is_at(job, phase), message=f"{job} at {phase}")

    def ends(self, job: str) -> JobStatus:
        """Wait until a job has ended."""
        return self.deployment.wait_for(
            lambda: self.desk.is_finished(job), message=f"end of {job}"
        ).status


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    with deployed(folder / "home", **QUICK) as deployment:
        deployment.run("migrate")
        desk = Desk(deployment.environment)
        bench = Bench(deployment, desk, desk.push(folder), deployment.start("worker"))
        yield bench
        desk.close()


@dataclass(frozen=True)
class Undisturbed:
    hashes: dict[str, str]
    events: list[tuple[str, int | None, Any]]


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Undisturbed:
    job = bench.desk.submit(bench.dataset)
    assert bench.ends(job) is JobStatus.SUCCEEDED
    return Undisturbed(bench.desk.hashes(job), bench.desk.work_events(job))


def check(bench: Bench, job: str, undisturbed: Undisturbed) -> None:
    """Assert that a job ended exactly as the undisturbed one."""
    assert bench.ends(job) is JobStatus.SUCCEEDED, bench.desk.job(job).error
    assert bench.desk.hashes(job) == undisturbed.hashes
    events = bench.desk.work_events(job)
    assert len(events) == len(set(events))
    assert sorted(events, key=str) == sorted(undisturbed.events, key=str)


def strike(bench: Bench, job: str, phase: str, fault: Callable[[], None]) -> bool:
    """Cause a fault at a random moment of a phase; return whether the job was unfinished."""
    bench.wait_until(job, phase)
    if phase != "writing":
        time.sleep(DRAW.uniform(0, 0.3))
    fault()
    return bench.desk.is_finished(job) is None


class TestUndisturbed:
    def test_leaves_all_encodings_and_events(self, undisturbed: Undisturbed):
        assert set(undisturbed.hashes) == {"float32", "bfloat16", "int8", "lora"}
        kinds = [kind for kind, _, _ in undisturbed.events]
        assert kinds.count("selection") == 1
        assert kinds.count("metrics") == 3  # of the start, too
        assert kinds.count("step") == 40

    def test_again_is_the_same(self, bench: Bench, undisturbed: Undisturbed):
        check(bench, bench.desk.submit(bench.dataset), undisturbed)


class TestSigkill:
    def test_of_the_engine_in_each_phase(self, bench: Bench, undisturbed: Undisturbed):
        job = bench.desk.submit(bench.dataset)
        crashes = [strike(bench, job, phase, lambda: kill([bench.engine()])) for phase in PHASES]
        check(bench, job, undisturbed)
        assert all(crashes[:-1])  # at the last one the engine may have had nothing more to do
        assert any("SIGKILL" in warning for warning in bench.desk.warnings(job))

    # However many tokens there are, a killed worker leaves the same: each phase is struck once.
    @pytest.mark.parametrize(
        ("tokens", "phases"),
        [(0, ("validating",)), (1, ("selecting", "writing")), (2, ("training",))],
    )
    def test_of_the_worker_in_each_phase(
        self, bench: Bench, undisturbed: Undisturbed, tokens: int, phases: tuple[str, ...]
    ):
        job = bench.desk.submit(bench.dataset, tokens=tokens)
        for phase in phases:
            is_hit = strike(bench, job, phase, bench.kill_worker)
            assert is_hit or phase == "writing"
            bench.new_worker()
        check(bench, job, undisturbed)


class TestFrozenEngine:
    def test_is_replaced_and_the_job_goes_on(self, bench: Bench, undisturbed: Undisturbed):
        bench.replace_worker(HIFI_ENGINE_STALL_SECONDS="3")
        try:
            job = bench.desk.submit(bench.dataset)
            bench.wait_until(job, "training")
            frozen = bench.engine()
            os.kill(frozen, signal.SIGSTOP)
            assert bench.desk.is_finished(job) is None
            check(bench, job, undisturbed)
            assert bench.engine() != frozen
            assert re.search(r"made no progress for \d+ seconds", bench.desk.warnings(job)[0])
        finally:
            bench.replace_worker()


class TestDeadWorker:
    def test_is_detected_by_the_next_one_on_its_machine(
        self, bench: Bench, undisturbed: Undisturbed
    ):
        bench.replace_worker(HIFI_LEASE_SECONDS="3600")
        try:
            job = bench.desk.submit(bench.dataset)
            bench.wait_until(job, "training")
        finally:
            bench.kill_worker()
            bench.new_worker()
        check(bench, job, undisturbed)  # long before the lease has run out
        assert "jobs of dead workers taken back" in bench.deployment.logs()


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process have stopped, which takes a moment."""
    states = [
        task.read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return set(states) == {"T"}


def freeze(bench: Bench) -> None:
    """Stop the worker between two transactions: within one it would lock SQLite for everybody."""
    path = bench.desk.database.engine.url.database
    while True:
        os.kill(bench.worker.pid, signal.SIGSTOP)
        bench.deployment.wait_for(lambda: is_stopped(bench.worker.pid), message="its stop")
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(bench.worker.pid, signal.SIGCONT)
                time.sleep(0.1)
            else:
                connection.execute("ROLLBACK")
                return


def freeze_amid_a_job(bench: Bench) -> str:
    """Stop the worker while it trains, again if the job has ended before it; return the job."""
    while True:
        job = bench.desk.submit(bench.dataset)
        bench.wait_until(job, "training")
        freeze(bench)
        if bench.desk.is_finished(job) is None:
            return job
        os.kill(bench.worker.pid, signal.SIGCONT)


class TestFrozen:
    def test_past_its_lease_its_late_writes_are_refused(
        self, bench: Bench, undisturbed: Undisturbed
    ):
        job = freeze_amid_a_job(bench)
        frozen = bench.worker
        try:
            bench.new_worker()
            bench.deployment.wait_for(
                lambda: bench.desk.job(job).fence > 1, message="the second claim"
            )
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        check(bench, job, undisturbed)
        frozen.terminate()
        assert frozen.wait(timeout=patience(60)) == 0
        assert "lease lost" in bench.deployment.logs()


class TestHealth:
    def test_is_that_of_this_homes_worker(self, bench: Bench, tmp_path: Path):
        """A worker that hangs is unhealthy, however well another one on this machine is."""

        def is_healthy(**variables: str) -> bool:
            command = [sys.executable, "-m", "service.health", "worker"]
            environment = {**bench.deployment.environment, **variables}
            return subprocess.run(command, env=environment, check=False).returncode == 0

        bench.deployment.wait_for(is_healthy, message="a healthy worker")
        elsewhere = {
            "HIFI_HOME": str(tmp_path),
            "HIFI_DATABASE_URL": bench.desk.settings.database_url,
        }
        assert not is_healthy(**elsewhere)
        freeze(bench)
        try:
            bench.deployment.wait_for(lambda: not is_healthy(), seconds=60, message="unhealthy")
        finally:
            os.kill(bench.worker.pid, signal.SIGCONT)
        bench.deployment.wait_for(is_healthy, message="a healthy worker again")


class TestTimeLimit:
    def test_fails_the_job_and_the_worker_goes_on(self, bench: Bench, undisturbed: Undisturbed):
        job = bench.desk.submit(bench.dataset, epochs=1000, max_seconds=8.0)
        assert bench.ends(job) is JobStatus.FAILED
        row = bench.desk.job(job)
        assert row.error["code"] == "time_limit_exceeded"
        assert row.error["param"] == "training.max_seconds"
        assert row.ran_seconds >= 8
        assert bench.desk.hashes(job) == {}
        limited = bench.desk.submit(bench.dataset, max_seconds=3600.0)
        check(bench, limited, undisturbed)  # its bytes do not depend on the limit


class TestWishes:
    def test_cancel_is_honoured_while_training(self, bench: Bench):
        job = bench.desk.submit(bench.dataset, epochs=200)
        bench.wait_until(job, "training")
        with bench.desk.database.write() as session:
            cancel(session, bench.desk.tenant, job)
        bench.deployment.wait_for(lambda: bench.desk.is_finished(job), seconds=5, message="the end")
        assert bench.desk.job(job).status is JobStatus.CANCELLED

    def test_a_paused_job_resumes_to_the_same_artifact(
        self, bench: Bench, undisturbed: Undisturbed
    ):
        job = bench.desk.submit(bench.dataset)
        bench.wait_until(job, "training")
        with bench.desk.database.write() as session:
            pause(session, bench.desk.tenant, job)
        bench.deployment.wait_for(
            lambda: bench.desk.job(job).status is JobStatus.PAUSED, seconds=5, message="the pause"
        )
        with bench.desk.database.write() as session:
            resume(session, bench.desk.tenant, job)
        bench.desk.publisher.publish()
        check(bench, job, undisturbed)

    def test_a_terminated_worker_hands_its_job_back(self, bench: Bench, undisturbed: Undisturbed):
        job = bench.desk.submit(bench.dataset)
        bench.wait_until(job, "training")
        bench.worker.terminate()
        assert bench.worker.wait(timeout=patience(30)) == 0
        row = bench.desk.job(job)
        assert (row.status, row.attempt) == (JobStatus.QUEUED, 1)
        assert row.checkpoint is not None
        bench.new_worker()
        check(bench, job, undisturbed)
