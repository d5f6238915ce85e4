"""A scripted engine that replaces the process that computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from store.jobs.spec import JobSpec
from worker.engine.handle import EngineDiedError
from worker.engine.messages import (
    Command,
    Control,
    Done,
    EngineEvent,
    Failed,
    Message,
    RunJob,
    Stopped,
    StopRequest,
)

SCORES = {
    "information_richness": [1.0, 2.0],
    "correlation": [[1.0, 0.5], [0.5, 1.0]],
    "importance": [0.4, 0.6],
    "iterations": 3,
    "selected": [1],
}
SELECTION = {
    "k": 1,
    "xi": 0.9,
    "d": 0.85,
    "strategy": "layer-wise",
    "teleport": "information",
    "n_samples": 9,
    "num_layers": 1,
    "fingerprint": "sha256:ab",
    "trainable_parameters": 10,
    "fraction": 0.1,
    "head_dim": 4,
    "layers": [{"layer": 0, **SCORES}],
}
RESULT = {"metrics": {"accuracy": 0.5}, "best_step": 2}
Line: TypeAlias = "Message | EngineDiedError | Until | Callable[[ScriptedEngine], Message | None]"


@dataclass(frozen=True)
class Until:
    """A line at which the engine sends nothing until a condition holds."""

    is_so: Callable[[], object]


class ScriptedEngine:
    """Follows one script per start; a callable in a script makes its message when it is due.

    Attributes:
        sent: the commands received.
        kills: how often it was killed.
        jobs: how many it has begun since then, those before the test included.
    """

    def __init__(self, *scripts: Iterable[Line]) -> None:
        self._scripts = [list(script) for script in scripts]
        self.is_ready = True
        self._script: list[Line] = []
        self.sent: list[Command] = []
        self.kills = 0
        self.jobs = 0

    def say_before_ready(self, *lines: Line) -> None:
        """Send these lines before any job."""
        self._script = list(lines)

    def start(self) -> None:
        """Do nothing: it always runs."""

    def send(self, command: Command) -> None:
        """Receive a command; a job starts the next script."""
        self.sent.append(command)
        if isinstance(command, RunJob):
            self.jobs += 1
            self._script = self._scripts.pop(0)

    def receive(self, *, timeout: float) -> Message | None:  # noqa: ARG002 - the real one's
        """Return the next line's message."""
        if not self._script:
            return None
        line = self._script.pop(0)
        if isinstance(line, Until):
            if not line.is_so():
                self._script.insert(0, line)
                time.sleep(0.001)
            return None
        if isinstance(line, EngineDiedError):
            raise line
        message = line(self) if callable(line) else line
        if isinstance(message, EngineEvent | Done | Stopped | Failed) and not message.run:
            return replace(message, run=self.job.run)
        return message

    def kill(self) -> None:
        """Count the kill."""
        self.kills += 1
        self.jobs = 0

    @property
    def stop_requests(self) -> list[str]:
        """What the engine was asked to do."""
        return [command.stop_request for command in self.sent if isinstance(command, Control)]

    @property
    def job(self) -> RunJob:
        """The newest job that it got."""
        return [command for command in self.sent if isinstance(command, RunJob)][-1]


def event(kind: str, **fields: Any) -> EngineEvent:
    """Make the line that is an event."""
    return EngineEvent(run="", kind=kind, **fields)


def failed(code: str, **fields: Any) -> Failed:
    """Return the line that reports a failed job."""
    return Failed(run="", code=code, **fields)


def stopped(stop_request: StopRequest) -> Stopped:
    """Make the line that ends a job as asked."""
    return Stopped(run="", stop_request=stop_request)


def done(content: bytes = b"delta") -> Line:
    """Return the line that reports a finished job; its artifact holds these bytes."""

    def say(engine: ScriptedEngine) -> Message:
        path = Path(engine.job.output) / "float32"
        path.write_bytes(content)
        return Done(run="", result=RESULT, artifacts={"float32": str(path)})

    return say


def checkpoint(step: int, content: bytes) -> Line:
    """Return the line that reports a checkpoint with one file."""

    def say(engine: ScriptedEngine) -> Message:
        folder = Path(engine.job.checkpoints) / f"step-{step:08d}"
        folder.mkdir()
        (folder / "state.json").write_bytes(content)
        files = [str(path) for path in folder.iterdir()]
        return event("checkpoint", step=step, total_steps=4, checkpoint=files)

    return say


def nowhere_job(run: str) -> RunJob:
    """Return a job none of whose files exist."""
    return RunJob(
        run=run,
        spec=JobSpec(model="m", dataset="ds_1"),
        data={"train": "/nowhere.csv"},
        model="/nowhere",
        revision=None,
        device="cpu",
        checkpoints="/nowhere",
        checkpoint_seconds=60.0,
        state_memory_bytes=None,
        output="/nowhere",
        max_seconds=3600.0,
    )


def NOTHING(_: ScriptedEngine) -> None:  # noqa: N802 - a line, like BEGIN
    """Send nothing."""


def step(number: int, *, total: int = 4) -> EngineEvent:
    """Make the line that tells of a training step."""
    return event("step", step=number, total_steps=total, loss=1 / number, text=f"step {number}")


LOADED = event("loaded", text="classification of text by label")
SELECTING = event("selecting", step=9, total_steps=9)
SELECTED = event("selected", selection=SELECTION, text="selected 1 heads")
BEGIN: tuple[EngineEvent, ...] = (LOADED, SELECTING, SELECTED)
