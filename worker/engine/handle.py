"""A worker's handle on its engine: start it, exchange messages, detect its death, replace it."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

import structlog

from hifi.errors import HifiError
from worker.engine.messages import Broken, Command, Message, Ready, RunJob, decode, encode

_START_SECONDS = 300.0  # importing torch from a cold disk
_ENDING_SECONDS = 5.0
_DYING_SECONDS = 20.0  # a killed process needs seconds to release many gigabytes
_MOST_MESSAGES = 1000  # unread ones; the engine then blocks
_log = structlog.get_logger(__name__)


class EngineDiedError(HifiError):
    """The engine has ended or stopped responding.

    Attributes:
        code: ``engine_crashed`` or ``engine_stalled``.
    """

    def __init__(self, message: str, *, code: str = "engine_crashed") -> None:
        super().__init__(message)
        self.code = code


class EngineProcess:
    """One engine at a time: a spawned child process (never a fork, because of CUDA).

    Args:
        purpose: what it is for, to tell engines apart in the log.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log_format: of its logs, ``json`` or ``text``.
        environment: for the child, instead of this process's.
        memory: the most bytes of its host memory; None is a share of the machine's on a CPU.
        niceness: added to the child's once it is ready, so that its start is not slowed down.

    Attributes:
        is_ready: whether the running engine has loaded its libraries.
        jobs: how many jobs the running engine has begun.
    """

    def __init__(
        self,
        *,
        purpose: str = "jobs",
        device: str,
        log_format: str = "text",
        environment: Mapping[str, str],
        memory: int | None = None,
        niceness: int = 0,
    ) -> None:
        limit = "" if memory is None else str(memory)
        self._purpose = purpose
        self._arguments = [device, log_format, limit, str(niceness)]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[Message | None] = queue.Queue(_MOST_MESSAGES)
        self._reader: threading.Thread | None = None
        self.is_ready = False
        self.jobs = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; None if there is no child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the engine if it is not running; it accepts commands at once.

        Call this from a thread that lives as long as the worker: on Linux the engine is killed when
        the thread that started it ends.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        self._messages = queue.Queue(_MOST_MESSAGES)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "worker.engine.process", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
        )
        self._reader = threading.Thread(
            target=_read,
            args=(self._process.stdout, self._messages),
            name="engine-messages",
            daemon=True,
        )
        self._reader.start()
        _log.info("engine started", purpose=self._purpose, pid=self._process.pid)

    def wait_until_ready(self) -> None:
        """Wait until a newly started engine has loaded its libraries.

        Raises:
            EngineDiedError: the engine ends, or is not ready in time.
        """
        self.receive(timeout=_START_SECONDS)
        if not self.is_ready:
            self.kill()
            raise EngineDiedError(f"the engine was not ready after {_START_SECONDS:.0f} seconds")

    def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            EngineDiedError: the engine has ended.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise EngineDiedError("the engine is not running")
        try:
            process.stdin.write(encode(command))
            process.stdin.flush()
        except OSError as error:
            raise EngineDiedError(self._cause_of_death()) from error
        self.jobs += isinstance(command, RunJob)

    def receive(self, *, timeout: float) -> Message | None:
        """Wait for the next message; return None on a timeout.

        Messages that an engine sent before it died are still returned.

        Raises:
            EngineDiedError: the engine has ended, or cannot start.
        """
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is None:
            raise EngineDiedError(self._cause_of_death())
        if isinstance(message, Broken):
            raise EngineDiedError(f"the engine cannot start: {message.text}")
        self.is_ready = self.is_ready or isinstance(message, Ready)
        return message

    def _cause_of_death(self) -> str:
        process = self._process
        try:
            code = None if process is None else process.wait(timeout=_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            return (
                f"the engine closed its pipe and did not end within {_DYING_SECONDS:.0f} seconds: "
                "see its log"
            )
        if code is None or code >= 0:
            return f"the engine ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (often by the kernel, out of memory)" if -code == signal.SIGKILL else ""
        return f"the engine was killed by {name}{hint}"

    def kill(self) -> None:
        """Kill the engine, if there is one."""
        process, self._process = self._process, None
        self.is_ready = False
        self.jobs = 0
        if process is None:
            return
        process.kill()
        process.wait()
        self._drain()
        for stream in (process.stdin, process.stdout):
            _close(stream)

    def _drain(self) -> None:
        """Wait for the reader thread of a dead engine to end."""
        while self._reader is not None and self._reader.is_alive():
            with suppress(queue.Empty):
                self._messages.get(timeout=0.05)

    def close(self, *, seconds: float = _ENDING_SECONDS) -> None:
        """Wait for the engine to end by itself; kill it after ``seconds`` seconds."""
        if self._process is not None:
            _close(self._process.stdin)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
        self.kill()


def _read(stream: IO[bytes], messages: queue.Queue[Message | None]) -> None:
    """Pass messages on until the engine's end of the pipe is closed."""
    try:
        for line in stream:
            messages.put(decode(line))  # type: ignore[arg-type] # the engine sends no commands
    except ValueError:  # a kill cut the line, or we closed the pipe
        _log.debug("the engine's last line was incomplete")
    finally:
        messages.put(None)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except OSError:  # buffered data for a dead engine
            _log.debug("the pipe to the engine was broken")
