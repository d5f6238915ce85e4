"""A process of another environment, as the harness sees it: it answers, or there is an error."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from benchmarks.paper.rivals import channel
from benchmarks.paper.rivals.environments import interpreter
from hifi.errors import HifiError, shorten

if TYPE_CHECKING:
    from benchmarks.paper.rivals.channel import Message

_ROOT = Path(__file__).parents[3]  # of the repository, so that the process finds its module
_SECONDS = 600.0  # for an answer; loading the packages is part of the first
_GRACE = 10.0  # seconds in which a process ends that has closed its output
_MOST_QUOTED = 300  # characters of a process's last words
# One thread each, as the processes of the harness; nothing from a hub; nothing on a GPU.
_VARIABLES = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


class ChildError(HifiError):
    """A process of another environment has not answered a request."""


def start(environment: str, *, module: str) -> Child:
    """Start a module of this package in one of the environments.

    Raises:
        RivalEnvironmentError: the environment has not been made.
    """
    return Child([str(interpreter(environment)), "-m", f"{__package__}.{module}"])


class Child:
    """A process that answers one request after another, by ``channel.serve``.

    Args:
        command: starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        threads = str(torch.get_num_threads())
        self._process = subprocess.Popen(  # noqa: S603 - the caller's command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=_ROOT,
            env={**os.environ, **_VARIABLES, "OMP_NUM_THREADS": threads},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, request: str, message: Message, *, seconds: float = _SECONDS) -> Message:
        """Return the answer to a request.

        Args:
            request: its name.
            message: what belongs to it.
            seconds: the longest time of the answer.

        Raises:
            ChildError: the process has ended, has taken longer, or has answered with nonsense.
        """
        process = self._process
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101 - as above
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            channel.write(process.stdin, channel.ask(request, message))
            return channel.read(process.stdout)
        except (EOFError, OSError, ValueError) as error:
            late = f"has not answered within {seconds:g} s" if is_late.is_set() else None
            nonsense = f"has answered with {error}" if isinstance(error, ValueError) else None
            what = late or nonsense or f"has ended with status {self._status()}"
            reason = f"{request}: the process {what}; its last words: {self._last_words()}"
            raise ChildError(reason) from error
        finally:
            timer.cancel()

    def _status(self) -> int:
        """Return the exit status; a process that has only closed its output is killed."""
        try:
            return self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return shorten(words[-1], characters=_MOST_QUOTED) if words else "none"
