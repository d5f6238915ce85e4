"""The events that a fine-tune sends to its caller, and the caller's answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hifi.errors import InvalidArgumentError, JobCancelled, JobPaused, JobTimedOut

if TYPE_CHECKING:
    from hifi.data.run_warnings import RunWarning
    from hifi.selection.head_selection import HeadSelection

EventKind = Literal[
    "loading",
    "loaded",
    "resumed",
    "probing",
    "yardsticks",
    "selecting",
    "selected",
    "step",
    "evaluating",
    "evaluated",
    "checkpoint",
    "tested",
    "finished",
]


class Control(Enum):
    """The answer to an event: continue, stop at a checkpoint, or cancel."""

    CONTINUE = "continue"
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """One progress report of a fine-tune.

    ``(kind, step)`` identifies an event, even if a resumed run repeats it. Only ``evaluating``, one
    per batch, and the last try of ``probing``, if it is repeated, are not unique.

    Attributes:
        kind: ``loading`` the model and the data; ``loaded``, with task, columns, rows and precision
            in the message, and with warnings; ``resumed``, if the run resumes from a checkpoint;
            ``probing``, once per batch of the frozen passes and per try of the probe's fit;
            ``yardsticks``, with what the metrics will be compared with and where the task head
            starts; ``selecting``, once per calibration batch; ``selected``, with the selection;
            ``step``, after every optimizer step; ``evaluating``, once per batch of validation or
            test; ``evaluated``, with the metrics of the validation split; ``checkpoint``, after one
            was written; ``tested``, with the metrics of the test split; ``finished``.
        number: counts the events of a run from 1. A resumed run continues from the number of its
            checkpoint's event, so numbers repeat if the previous run went further than that.
        step: optimizer steps done; in ``selecting``, calibration samples seen; in ``probing``,
            batches and tries.
        total_steps: the final value of ``step``; 0 while it is unknown.
        epoch: epochs done, a fraction.
        loss: of this step's batch.
        learning_rate: of this step.
        metrics: of this evaluation; in ``tested`` and ``finished``, those of the best step.
        samples_per_second: training samples per second of training.
        eta_seconds: expected time until the last step, without evaluations.
        message: one line for people.
        selection: in ``selected``, the heads and their scores.
        trainable_parameters: in ``selected``, the number of trained weights: the rows of the heads
            and the task head.
        fraction: in ``selected``, trained weights over all weights of the model, including the task
            head.
        head_dim: in ``selected``, D', the width of a head.
        yardsticks: in ``yardsticks``, as ``FinetuneResult`` has them.
        warnings: in ``loaded``, ``yardsticks`` and ``finished``, all that the caller should know so
            far about the data, the task head and the result; if the run resumes, those of its
            checkpoint too.
    """

    kind: EventKind
    number: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    message: str = ""
    selection: HeadSelection | None = None
    trainable_parameters: int | None = None
    fraction: float | None = None
    head_dim: int | None = None
    yardsticks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()


OnEvent = Callable[[TrainingEvent], Control | None]


class Emitter:
    """Number the events, send them to the caller and act on the answers.

    Args:
        on_event: the caller's function; without it every answer is CONTINUE.
        max_seconds: how long the run may take from now on; None for any time.

    Attributes:
        number: of the last event.
        checkpoint: the newest checkpoint of this run; None before the first.
        is_pause_wanted: whether the caller has answered PAUSE.
    """

    def __init__(self, on_event: OnEvent | None, *, max_seconds: float | None = None) -> None:
        self._on_event = on_event
        self._max_seconds = max_seconds
        self._ends_at = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self.number = 0
        self.checkpoint: Path | None = None
        self.is_pause_wanted = False

    def emit(self, event: TrainingEvent) -> None:
        """Send one event with the next number.

        Raises:
            JobCancelled: the caller answers CANCEL.
            InvalidArgumentError: the answer is neither a Control nor None.
        """
        self.number += 1
        if self._on_event is None:
            return
        answer = self._on_event(replace(event, number=self.number))
        if answer is not None and not isinstance(answer, Control):
            raise InvalidArgumentError(
                "on_event", value=answer, limit="it must return a Control, or None to continue"
            )
        if answer is Control.CANCEL:
            raise JobCancelled(
                f"cancelled at the caller's request ({event.message})", checkpoint=self.checkpoint
            )
        self.is_pause_wanted |= answer is Control.PAUSE

    @property
    def has_to_stop(self) -> bool:
        """Whether the caller has requested a pause, or the time is up."""
        return self.is_pause_wanted or time.monotonic() >= self._ends_at

    def stop_if_requested(self, place: str) -> None:
        """Stop here if the caller has requested a pause, or the time is up.

        Args:
            place: where the run is, and what is lost; part of the error's message.

        Raises:
            JobPaused, JobTimedOut: it stops; the error has the newest checkpoint.
        """
        if self.is_pause_wanted:
            raise JobPaused(f"paused {place}", checkpoint=self.checkpoint)
        if self.has_to_stop:
            message = f"max_seconds={self._max_seconds:g} ran out {place}"
            raise JobTimedOut(message, checkpoint=self.checkpoint)
