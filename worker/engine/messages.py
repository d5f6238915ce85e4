"""What a worker and its engine say to each other: one JSON object per line, over pipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter

from store.jobs.spec import JobSpec  # noqa: TC001 - pydantic reads it when it runs

Wish = Literal["pause", "cancel"]


@dataclass(frozen=True, kw_only=True)
class DescribeBackbones:
    """Asks the engine what the backbones look like.

    Attributes:
        backbones: id to folder.
    """

    backbones: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """Asks the engine to run a job.

    Attributes:
        run: names this run; whatever is told of it bears the name, and nothing else does.
        spec: what its owner asks for.
        data: the splits as ``hifi.finetune`` takes them.
        model: the backbone's folder, or its hub id.
        revision: of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        checkpoints: the folder for the checkpoints.
        checkpoint_seconds: between two of them.
        output: the folder for the artifacts.
    """

    run: str
    spec: JobSpec
    data: Mapping[str, Any]
    model: str
    revision: str | None
    device: str
    checkpoints: str
    checkpoint_seconds: float
    output: str


@dataclass(frozen=True, kw_only=True)
class Control:
    """Asks the engine to stop a run; one that is over does not mind."""

    run: str
    wish: Wish


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The engine has loaded its libraries, or has described the backbones."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What one backbone looks like; ``error`` says why it cannot be used."""

    id: str
    description: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """A ``hifi.TrainingEvent``, with a selection as plain JSON.

    Attributes:
        run: of the job that tells it.
        checkpoint: in ``checkpoint``, its files.
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


@dataclass(frozen=True, kw_only=True)
class Done:
    """The job is done: what it came to, and the artifacts' files by encoding."""

    run: str
    result: Mapping[str, Any]
    artifacts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The job was paused or cancelled as asked."""

    run: str
    wish: Wish


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job cannot be done.

    Attributes:
        code: stable, snake_case.
        text: for the job's owner.
        param: the field of the job spec at fault, dotted.
        is_lasting: whether another try would fail alike.
    """

    run: str
    code: str
    text: str
    param: str | None = None
    is_lasting: bool = True


Command: TypeAlias = DescribeBackbones | RunJob | Control
Message: TypeAlias = Ready | Described | Told | Done | Stopped | Failed

_KINDS: dict[str, TypeAdapter[Command | Message]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        *(DescribeBackbones, RunJob, Control),
        *(Ready, Described, Told, Done, Stopped, Failed),
    )
}


def encode(message: Command | Message) -> bytes:
    """Write a message as one line."""
    name = type(message).__name__
    document = {"is": name, **_KINDS[name].dump_python(message)}
    return json.dumps(document, ensure_ascii=True).encode() + b"\n"


def decode(line: bytes) -> Command | Message:
    """Read a line back.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        document = json.loads(line)
        return _KINDS[document.pop("is")].validate_python(document)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"not a message of the engine: {line[:80]!r}") from error
