"""The whole embedded service as `hifi serve` runs it, and a client of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.client import Client
from service.embedded.listening import free_loopback_port
from tests.integration.deployment import QUICK, Deployment, children, deployed, kill
from tests.integration.jobs import write_splits
from tests.waiting import patience

SPEC: dict[str, Any] = {
    "model": "all-MiniLM-L6-v2",
    "k": 1,
    "n_samples": 64,
    "training": {"epochs": 2, "batch_size": 8, "max_length": 32, "precision": "float32"},
}


class Served:
    """``hifi serve`` in a home of its own, on a port that stays the same."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.url = f"http://127.0.0.1:{deployment.environment['HIFI_PORT']}"
        self.client = Client(self.url)
        self.process: subprocess.Popen[bytes] = deployment.start("serve")

    def wait_until_ready(self) -> None:
        """Wait until the log reports that it is ready."""
        log = self.deployment.home / f"serve-{len(self.deployment.processes) - 1}.log"
        self.deployment.wait_for(lambda: "HiFi is ready" in log.read_text(), message="ready")

    def parts(self) -> list[int]:
        """List the supervised processes and their children."""
        mine = children(self.process.pid)
        return [*mine, *(child for part in mine for child in children(part))]

    def part(self, command: str) -> int:
        """Find one of the processes by part of its command line."""
        return next(pid for pid in self.parts() if command in command_line(pid))

    def kill_everything(self) -> None:
        """Kill the supervisor and everything it started, at once."""
        pids = [self.process.pid, *self.parts()]
        kill(pids)
        self.process.wait()
        for pid in pids:
            self.deployment.wait_for(lambda pid=pid: is_gone(pid), message=f"end of {pid}")

    def start_again(self) -> None:
        """Start it in the same home."""
        self.process = self.deployment.start("serve")

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout=patience(90))

    def push(self, folder: Path) -> str:
        """Upload the small data set; return its id."""
        train, validation = write_splits(folder)
        return str(self.client.datasets.push(train, validation=validation, name="words")["id"])

    def hashes(self, job_id: str) -> dict[str, str]:
        """Return the hash of each encoding of a job's artifact."""
        artifact = self.client.jobs.get(job_id)["artifact"]
        assert artifact is not None
        return {name: entry["sha256"] for name, entry in artifact["encodings"].items()}


def command_line(pid: int) -> str:
    """Return the command line of a process, or "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def work_events(events: list[Any]) -> list[tuple[str, Any]]:
    """Reduce events to what does not depend on the clock or on which process was killed."""
    return [
        (event["type"], event["data"].get("step", event["message"]))
        for event in events
        if event["type"] in ("selection", "step", "metrics")
    ]


@contextmanager
def served(home: Path, **settings: str) -> Iterator[Served]:
    """Run the embedded service until the end of a block."""
    with deployed(home, **QUICK, PORT=str(free_loopback_port()), **settings) as deployment:
        service = Served(deployment)
        try:
            service.wait_until_ready()
            yield service
        finally:
            service.client.close()
