"""The messages between a worker and its engine: one JSON object per line, over pipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter

from store.jobs.spec import JobSpec  # noqa: TC001 - pydantic needs it at run time

StopRequest = Literal["pause", "cancel"]
TIME_LIMIT_EXCEEDED = "time_limit_exceeded"  # the code of a job that has run for max_seconds


@dataclass(frozen=True, kw_only=True)
class DescribeBackbones:
    """Requests descriptions of backbones.

    Attributes:
        backbones: id to folder.
    """

    backbones: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """Requests that a job be run.

    Attributes:
        run: the name of this run; only messages about it carry the name.
        spec: from the job's owner.
        data: the splits as ``hifi.finetune`` takes them.
        model: the backbone's folder, or its hub id.
        revision: of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        checkpoints: the folder for the checkpoints.
        checkpoint_seconds: between two of them.
        state_memory_bytes: the most of hidden states in memory; None for the library's default.
        output: the folder for the artifacts.
        max_seconds: how long the run may take.
    """

    run: str
    spec: JobSpec
    data: Mapping[str, Any]
    model: str
    revision: str | None
    device: str
    checkpoints: str
    checkpoint_seconds: float
    state_memory_bytes: int | None
    output: str
    max_seconds: float


@dataclass(frozen=True, kw_only=True)
class Control:
    """Requests that a run be stopped; ignored if it has ended."""

    run: str
    stop_request: StopRequest


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The engine has loaded its libraries, or has described the backbones."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The engine cannot start, and ends."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """The description of one backbone; or ``error``, why it cannot be used."""

    id: str
    description: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class EngineEvent:
    """A ``hifi.TrainingEvent``, with a selection as plain JSON.

    Attributes:
        run: the run that it is from.
        checkpoint: the files, in an event of the kind ``checkpoint``.
        yardsticks: in an event of the kind ``yardsticks``.
        warnings: as the job stores them: all that are known, in events that have news of them.
    """

    run: str
    kind: str
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    text: str = ""
    selection: Mapping[str, Any] | None = None
    checkpoint: Sequence[str] = ()
    yardsticks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Done:
    """The job is done: its result, and the artifacts' files by encoding."""

    run: str
    result: Mapping[str, Any]
    artifacts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The job was paused or cancelled as requested."""

    run: str
    stop_request: StopRequest


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job has failed.

    Attributes:
        code: stable, snake_case.
        text: for the job's owner.
        param: the field of the job spec at fault, dotted.
        is_lasting: whether another try would fail too.
    """

    run: str
    code: str
    text: str
    param: str | None = None
    is_lasting: bool = True


Command: TypeAlias = DescribeBackbones | RunJob | Control
Message: TypeAlias = Ready | Broken | Described | EngineEvent | Done | Stopped | Failed

_KINDS: dict[str, TypeAdapter[Command | Message]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(DescribeBackbones, RunJob, Control),
        *(Ready, Broken, Described, EngineEvent, Done, Stopped, Failed),
    )
}


def encode(message: Command | Message) -> bytes:
    """Return a message as one line."""
    name = type(message).__name__
    document = {"is": name, **_KINDS[name].dump_python(message)}
    return json.dumps(document, ensure_ascii=True).encode() + b"\n"


def decode(line: bytes) -> Command | Message:
    """Parse a line.

    Raises:
        ValueError: it is not one of these messages.
    """
    try:
        document = json.loads(line)
        return _KINDS[document.pop("is")].validate_python(document)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"not a message of the engine: {line[:80]!r}") from error
