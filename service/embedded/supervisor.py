"""The supervisor of an embedded service: it starts the parts, restarts them, and stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

import structlog

from store.errors import StoreError
from store.machine import end_with_parent

_QUICK_SECONDS = 30.0  # a part that ends sooner never worked
_MOST_QUICK_ENDS = 5  # in a row; then restarting it has no use
_FIRST_WAIT_SECONDS = 0.5  # before a restart; doubled with every quick end
_LONGEST_WAIT_SECONDS = 30.0
_TICK_SECONDS = 0.1
_STDERR = 2
_log = structlog.get_logger(__name__)


class CrashLoopError(StoreError):
    """A part of the service repeatedly ends soon after its start."""

    code = "crash_loop"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the service.

    Attributes:
        name: for people.
        command: the program and its arguments.
        descriptors: file descriptors that it inherits.
        rank: parts of a lower rank are stopped first.
        grace_seconds: how long it may take to shut down after SIGTERM.
    """

    name: str
    command: Sequence[str]
    descriptors: Sequence[int] = ()
    rank: int = 0
    grace_seconds: float = 15.0


class Supervisor:
    """Runs the parts of a service, with one environment, until a signal ends it.

    The first SIGTERM or Ctrl-C stops the parts in order, a second one kills them. A part that ends
    by itself is restarted, with a longer wait each time.
    """

    def __init__(self, parts: Sequence[Part], *, environment: Mapping[str, str]) -> None:
        self._children = [_Child(part, environment) for part in parts]
        self._signals: list[int] = []

    def run(self, *, watch: Callable[[], None]) -> int:
        """Run until a signal, and return its number; ``watch`` is called often and must be quick.

        Raises:
            CrashLoopError: a part keeps crashing; the others have been stopped.
        """
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._remember) for number in numbers}
        try:
            for child in self._children:
                child.start()
            while not self._signals:
                for child in self._children:
                    child.tend()
                watch()
                time.sleep(_TICK_SECONDS)
            _log.info("stopping", hint="a second signal stops at once")
            return self._signals[0]
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _stop(self) -> None:
        """Stop the parts rank by rank, each with its grace; at once after a second signal."""
        for rank in sorted({child.part.rank for child in self._children}):
            children = [child for child in self._children if child.part.rank == rank]
            for child in children:
                child.terminate()
            deadline = time.monotonic() + max(child.part.grace_seconds for child in children)
            while any(child.is_alive for child in children):
                if len(self._signals) > 1 or time.monotonic() > deadline:
                    break
                time.sleep(_TICK_SECONDS)
            for child in children:
                child.kill()


@dataclass
class _Child:
    """One part and its current process."""

    part: Part
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    quick_ends: int = 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        parent = os.getpid()
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 - our own caller chooses the command
            list(self.part.command),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,  # stdout belongs to the supervisor
            pass_fds=self.part.descriptors,
            process_group=0,  # Ctrl-C reaches only the supervisor, which stops the parts in order
            # Safe, since the supervisor has one thread.
            preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509
        )
        _log.info("started", part=self.part.name, child_pid=self.process.pid)

    def tend(self) -> None:
        """Restart the process if it has ended and its wait is over."""
        if self.process is None:
            if time.monotonic() >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        seconds = time.monotonic() - self.started_at
        _log.error("ended", part=self.part.name, exit_code=code, after_seconds=round(seconds, 1))
        self.process = None
        if seconds >= _QUICK_SECONDS:
            self.quick_ends = 0
        elif code != -signal.SIGKILL:  # which is not the part's fault
            self.quick_ends += 1
        if self.quick_ends >= _MOST_QUICK_ENDS:
            raise CrashLoopError(
                f"the {self.part.name} ended {self.quick_ends} times soon after its start (exit "
                f"code {code}): see its output above, fix the cause, and serve again"
            )
        wait = min(_FIRST_WAIT_SECONDS * 2 ** max(self.quick_ends - 1, 0), _LONGEST_WAIT_SECONDS)
        self.start_at = time.monotonic() + wait

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()  # does nothing if it has ended

    def kill(self) -> None:
        """Kill the process, including the processes that it started."""
        if self.process is None:
            return
        if self.is_alive:
            _log.error("killed", part=self.part.name)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _die_with(parent: int) -> None:
    """Make the kernel end this process when its parent ends; runs between fork and exec."""
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)
