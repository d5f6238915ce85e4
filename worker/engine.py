"""A worker's hold on its engine: start it, talk to it, notice its death, replace it."""

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

from worker.messages import Command, Message, Ready, decode, encode

_START_SECONDS = 300.0  # importing torch from a cold disk
_ENDING_SECONDS = 5.0
_MOST_MESSAGES = 1000  # unheard ones; the engine waits then
_log = structlog.get_logger(__name__)


class EngineDiedError(Exception):
    """The engine is gone, or says nothing any more.

    Attributes:
        code: ``engine_crashed`` or ``engine_stalled``.
    """

    def __init__(self, message: str, *, code: str = "engine_crashed") -> None:
        super().__init__(message)
        self.code = code


class EngineProcess:
    """One engine at a time: a spawned child (never a fork: CUDA), started anew when asked for.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        log_format: of what it logs, ``json`` or ``text``.
        environment: for the child, in place of this process's.

    Attributes:
        is_ready: whether the engine that runs has loaded its libraries.
    """

    def __init__(
        self, *, device: str, log_format: str = "text", environment: Mapping[str, str]
    ) -> None:
        self._device = device
        self._log_format = log_format
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[Message | None] = queue.Queue(_MOST_MESSAGES)
        self._reader: threading.Thread | None = None
        self.is_ready = False

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the engine, unless it runs; it takes commands at once and says when it is ready.

        Call it from a thread that lives as long as the worker: on Linux the engine is killed when
        the thread that started it ends.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        self._messages = queue.Queue(_MOST_MESSAGES)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "worker.engine_process", self._device, self._log_format],
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
        _log.info("engine started", pid=self._process.pid)

    def wait_until_ready(self) -> None:
        """Wait until an engine that was just started has loaded its libraries.

        Raises:
            EngineDiedError: it ends at once, or does not become ready.
        """
        self.receive(timeout=_START_SECONDS)
        if not self.is_ready:
            self.kill()
            raise EngineDiedError(f"the engine was not ready after {_START_SECONDS:.0f} seconds")

    def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            EngineDiedError: the engine is gone.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise EngineDiedError("the engine does not run")
        try:
            process.stdin.write(encode(command))
            process.stdin.flush()
        except OSError as error:
            raise EngineDiedError(self._cause_of_death()) from error

    def receive(self, *, timeout: float) -> Message | None:
        """Wait for the next message; None where there is none in time.

        What a dead engine had said is still given.

        Raises:
            EngineDiedError: the engine is gone.
        """
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is None:
            raise EngineDiedError(self._cause_of_death())
        self.is_ready = self.is_ready or isinstance(message, Ready)
        return message

    def _cause_of_death(self) -> str:
        process = self._process
        code = None if process is None else _end_of(process)
        if code is None or code >= 0:
            return f"the engine ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (often the kernel, for want of memory)" if -code == signal.SIGKILL else ""
        return f"the engine was killed by {name}{hint}"

    def kill(self) -> None:
        """End the engine at once; without one there is nothing to do."""
        process, self._process = self._process, None
        self.is_ready = False
        if process is None:
            return
        process.kill()
        process.wait()
        self._drain()
        for stream in (process.stdin, process.stdout):
            _close(stream)

    def _drain(self) -> None:
        """Let the reader of a dead engine come to its end."""
        while self._reader is not None and self._reader.is_alive():
            with suppress(queue.Empty):
                self._messages.get(timeout=0.05)

    def close(self, *, seconds: float = 5.0) -> None:
        """Let the engine end by itself, or kill it after some seconds."""
        if self._process is not None:
            _close(self._process.stdin)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
        self.kill()


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Give the exit code of a child that has closed its end of the pipe, and see that it ends."""
    try:
        return process.wait(timeout=_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _read(stream: IO[bytes], messages: queue.Queue[Message | None]) -> None:
    """Pass messages on until the engine's end of the pipe is closed."""
    try:
        for line in stream:
            messages.put(decode(line))  # type: ignore[arg-type] # the engine sends no commands
    except ValueError:  # a line cut by a kill, or the pipe closed by us
        _log.debug("the engine's last line was cut")
    finally:
        messages.put(None)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except OSError:  # what was buffered for a dead engine
            _log.debug("the pipe to the engine was broken")
