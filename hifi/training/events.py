"""What a fine-tune tells its caller, and what the caller may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hifi.errors import InvalidArgumentError, JobCancelled, JobPaused

if TYPE_CHECKING:
    from hifi.selection.head_selection import HeadSelection

EventKind = Literal[
    "loading",
    "loaded",
    "resumed",
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
    """One sign of life of a fine-tune.

    ``(kind, step)`` names an event, also where a resumed run repeats it; but ``evaluating`` comes
    as often as there are validation batches.

    Attributes:
        kind: ``loading`` the model and the data; ``loaded``, whose message tells task, columns,
            rows and precision; ``resumed``, where there is a checkpoint to go on from;
            ``selecting``, once per calibration batch; ``selected``, with the selection; ``step``,
            after every optimizer step; ``evaluating``, once per validation batch; ``evaluated``,
            with the metrics; ``checkpoint``, after one was written; ``finished``.
        number: counts the events of a run from 1; a resumed run counts on from the event of its
            checkpoint, so numbers come again if the run before it went further than that.
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
        trainable_parameters: in ``selected``, the weights that will be trained: the rows of the
            heads, and the task head.
        fraction: in ``selected``, these over all weights of the model, the task head included.
        head_dim: in ``selected``, D', the width of a head.
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


OnEvent = Callable[[TrainingEvent], Control | None]


class Emitter:
    """Number the events, hand them to the caller and remember or act on the answer.

    Args:
        on_event: the caller's function; without one every answer is CONTINUE.

    Attributes:
        number: of the last event.
        checkpoint: the newest checkpoint of this run, None before the first.
        is_pause_wanted: whether there was a PAUSE among the answers.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event
        self.number = 0
        self.checkpoint: Path | None = None
        self.is_pause_wanted = False

    def emit(self, event: TrainingEvent) -> None:
        """Send one event under the next number.

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
                "on_event", value=answer, limit="it must return a Control, or None to go on"
            )
        if answer is Control.CANCEL:
            raise JobCancelled(
                f"cancelled at the caller's request ({event.message})", checkpoint=self.checkpoint
            )
        self.is_pause_wanted |= answer is Control.PAUSE

    def stop_if_paused(self, message: str) -> None:
        """Stop here if the caller has asked for a pause.

        Raises:
            JobPaused: it has; the error has the message and the newest checkpoint.
        """
        if self.is_pause_wanted:
            raise JobPaused(message, checkpoint=self.checkpoint)
