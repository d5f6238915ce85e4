"""The service's processes, started as an operator starts them, in their own folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2

from tests.waiting import eventually, patience

T = TypeVar("T")
# Short enough that a test sees a lease run out, and that a job leaves several checkpoints.
QUICK = {"LEASE_SECONDS": "3", "CHECKPOINT_SECONDS": "0.3", "DEVICE": "cpu"}


class Deployment:
    """A home, its settings, and processes that end with the test.

    Args:
        home: HIFI_HOME; the processes' output goes to files in it.
        settings: further ``HIFI_…`` variables, without the prefix.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name[:5] != "HIFI_"},
            "HIFI_HOME": str(home),
            **{f"HIFI_{name}": value for name, value in settings.items()},
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start ``hifi COMMAND`` in the background, with these further variables."""
        log = (self.home / f"{command[0]}-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hifi.cli", *command],
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def run(self, *command: str) -> str:
        """Run ``hifi COMMAND`` to its end; return its stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "hifi.cli", *command],
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=patience(120),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def logs(self) -> str:
        """Return the end of every process's log, for a failing test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}"
            for path in sorted(self.home.glob("*.log"))
        )

    def wait_for(self, what: Callable[[], T | None], *, seconds: float = 90.0, message: str) -> T:
        """Wait until a function returns something true; on failure show the logs."""
        try:
            return eventually(what, seconds=seconds, message=message)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def close(self) -> None:
        """End every process that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=patience(30))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def deployed(home: Path, **settings: str) -> Iterator[Deployment]:
    """Run a deployment until the end of a block; print its logs if the block fails."""
    deployment = Deployment(home, **settings)
    try:
        yield deployment
    except BaseException:
        sys.stderr.write(deployment.logs())
        raise
    finally:
        deployment.close()


def children(pid: int) -> list[int]:
    """List the processes that a process has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    tasks = Path(f"/proc/{pid}/task").glob("*/children") if path.exists() else ()
    return [int(child) for task in tasks for child in task.read_text().split()]


def peak_megabytes(pid: int) -> float:
    """Return the largest resident memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def is_ready(url: str, *, without: Collection[str] = ()) -> bool:
    """Return whether a gateway has all that it needs but these parts."""
    try:
        answer = httpx2.get(f"{url}/readyz", timeout=patience(5), trust_env=False)
    except httpx2.TransportError:
        return False
    return answer.is_success and set(answer.json()["degraded"]) <= set(without)


def kill(pids: Sequence[int]) -> None:
    """Send SIGKILL to processes that may be gone already."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
