"""What a fine-tune tells its caller, and what the caller may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hifi.errors import InvalidArgumentError, JobCancelled

if TYPE_CHECKING:
    from hifi.head_selection import HeadSelection

EventKind = Literal[
    "loading",
    "selecting",
    "selected",
    "step",
    "evaluating",
    "evaluated",
    "checkpoint",
    "finished",
]


class Control(Enum):
    """The answer to an event: go on, stop at a checkpoint, or give up."""

    CONTINUE = "continue"
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """One sign of life of a fine-tune. ``(kind, step)`` names it, also after a resume.

    Attributes:
        kind: ``loading`` the model and the data; ``selecting``, once per calibration batch;
            ``selected``, with the selection; ``step``, after every optimizer step;
            ``evaluating``, once per validation batch; ``evaluated``, with the metrics;
            ``checkpoint``, after one was written; ``finished``.
        number: counts the events of a run from 1; a resumed run goes on counting.
        step: optimizer steps done; in ``selecting`` calibration samples seen.
        total_steps: what ``step`` counts up to; 0 while it is unknown.
        epoch: epochs done, a fraction.
        loss: of this step's batch.
        learning_rate: of this step.
        metrics: of this evaluation; in ``finished`` those of the best step.
        samples_per_second: training samples per second of training.
        eta_seconds: expected time until the last step, evaluations not counted.
        message: one line for people.
        selection: in ``selected``, the heads and their scores.
    """

    kind: EventKind
    number: int
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


OnEvent = Callable[[TrainingEvent], Control | None]


class Emitter:
    """Number the events, hand them to the caller and turn CANCEL into an exception.

    Args:
        on_event: the caller's function; without one every answer is CONTINUE.

    Attributes:
        number: of the last event.
        checkpoint: the newest checkpoint of this run, None before the first.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event
        self.number = 0
        self.checkpoint: Path | None = None

    def emit(  # a field of TrainingEvent per argument
        self,
        kind: EventKind,
        *,
        message: str,
        step: int = 0,
        total_steps: int = 0,
        epoch: float = 0.0,
        loss: float | None = None,
        learning_rate: float | None = None,
        metrics: Mapping[str, float] | None = None,
        samples_per_second: float | None = None,
        eta_seconds: float | None = None,
        selection: HeadSelection | None = None,
    ) -> bool:
        """Send one event.

        Returns:
            True where the caller asks for a pause.

        Raises:
            JobCancelled: the caller answers CANCEL.
            InvalidArgumentError: the answer is neither a Control nor None.
        """
        self.number += 1
        if self._on_event is None:
            return False
        event = TrainingEvent(
            kind=kind,
            number=self.number,
            step=step,
            total_steps=total_steps,
            epoch=epoch,
            loss=loss,
            learning_rate=learning_rate,
            metrics=metrics or {},
            samples_per_second=samples_per_second,
            eta_seconds=eta_seconds,
            message=message,
            selection=selection,
        )
        answer = self._on_event(event)
        if answer is Control.CANCEL:
            raise JobCancelled(
                f"cancelled at the caller's request ({message})", checkpoint=self.checkpoint
            )
        if answer not in (None, Control.CONTINUE, Control.PAUSE):
            raise InvalidArgumentError(
                "on_event", value=answer, limit="it must return a Control, or None to go on"
            )
        return answer is Control.PAUSE
