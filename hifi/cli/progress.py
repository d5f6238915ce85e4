"""Progress output: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from hifi.cli.output import format_metrics, format_seconds, printable

if TYPE_CHECKING:
    from rich.console import Console

    from hifi.training.events import TrainingEvent

LINE_SECONDS = 10.0  # between two plain lines about the same phase

_TITLES = {
    "queued": "waiting",
    "loading": "loading",
    "probing": "linear probe",
    "selecting": "scoring heads",
    "training": "training",
    "evaluating": "evaluating",
    "writing": "writing",
}
COUNTING = frozenset({"probing", "selecting", "training"})  # phases whose step counts up to a total
_INTERRUPTED = "training"  # its bar stays during other phases


@dataclass(frozen=True, kw_only=True)
class Progression:
    """The progress of a run.

    Attributes:
        phase: the current one.
        step: of the phase.
        total: steps of the phase; None if unknown.
        rest: more text to show.
    """

    phase: str
    step: int = 0
    total: int | None = None
    rest: str = ""

    @property
    def title(self) -> str:
        """The phase in words."""
        return _TITLES.get(self.phase, self.phase)

    @property
    def count(self) -> str:
        """The number of steps done, as ``20/80``; empty if the phase has no steps."""
        return f"{self.step}/{self.total}" if self.phase in COUNTING and self.total else ""


def describe_pace(
    *, loss: float | None = None, speed: float | None = None, eta: float | None = None
) -> str:
    """Format those of loss, samples per second and seconds left that are known."""
    parts = (
        "" if loss is None else f"loss {loss:.3f}",
        "" if speed is None else f"{speed:.0f} samples/s",
        "" if eta is None else f"ETA {format_seconds(eta)}",
    )
    return "  ".join(filter(None, parts))


def new_bars(console: Console) -> Progress:
    """Create bars with a description, a ``count`` and a ``rest``; they vanish when done."""
    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rest]}"),
        console=console,
        transient=True,
    )


class Bars:
    """One bar per phase, removed when the phase ends; ``progress`` must be started."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(self, progression: Progression) -> None:
        """Show the progress of a run."""
        phase = progression.phase
        self._close(*(name for name in self._bars if name not in (phase, _INTERRUPTED)))
        if phase not in self._bars:
            title = progression.title
            self._bars[phase] = self._progress.add_task(title, total=None, count="", rest="")
        self._progress.update(
            self._bars[phase],
            completed=progression.step,
            total=progression.total if progression.count else None,
            count=progression.count,
            rest=escape(progression.rest),
        )

    def say(self, line: str) -> None:
        """Print a permanent line above the bars."""
        self._progress.console.print(escape(line), highlight=False)

    def clear(self) -> None:
        """Remove the bars until the next update."""
        self._close(*self._bars)

    @contextmanager
    def make_room(self) -> Iterator[None]:
        """Remove the bars during a block, in which other code prints."""
        self._progress.stop()
        yield
        self._progress.start()

    def _close(self, *phases: str) -> None:
        for phase in phases:
            self._progress.remove_task(self._bars.pop(phase))


class Lines:
    """Plain lines: the start of a phase, its steps at intervals, and its last step."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._ended = ""  # the phase whose last step was printed
        self._last: dict[str, float] = {}

    def update(self, progression: Progression) -> None:
        """Show the progress of a run, unless the last line of its phase is recent."""
        phase, count = progression.phase, progression.count
        parts = (progression.title if count else "", count, progression.rest)
        now = self._clock()
        if phase == "evaluating" != self._phase:
            self._last[phase] = now  # most end before a line about them is useful
        self._phase = phase
        is_last = bool(count) and progression.step == progression.total
        is_soon = now - self._last.get(phase, -math.inf) < LINE_SECONDS
        if not any(parts) or (phase == self._ended if is_last else is_soon):
            return
        self._last[phase], self._ended = now, phase if is_last else ""
        self.say(" ".join(filter(None, parts)))

    def say(self, line: str) -> None:
        """Print a line without wrapping."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def clear(self) -> None:
        """Do nothing: there are no bars."""

    @contextmanager
    def make_room(self) -> Iterator[None]:
        """Do nothing: there are no bars."""
        yield


Screen = Bars | Lines


@contextmanager
def open_screen(console: Console) -> Iterator[Screen]:
    """Show progress during a block.

    Args:
        console: of stderr.

    Yields:
        Bars if ``console`` is a terminal, else plain lines at intervals.
    """
    if not console.is_terminal:
        yield Lines(console)
        return
    with new_bars(console) as progress:
        yield Bars(progress)


class Display:
    """Shows the events of one fine-tune on a screen."""

    def __init__(self, screen: Screen, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._begun: dict[str, tuple[float, int]] = {}  # when a phase began, and at which step
        self._warned: set[str] = set()
        self.make_room = screen.make_room

    def show(self, event: TrainingEvent) -> None:
        """Show one event."""
        phase = "training" if event.kind == "step" else event.kind
        if phase not in _TITLES:
            self._screen.clear()
            if line := _line(event):
                self._screen.say(line)
            for warning in event.warnings:
                if warning.message not in self._warned:
                    self._warned.add(warning.message)
                    self._screen.say(printable(f"warning: {warning.message}"))
            return
        rest = event.message
        if phase in COUNTING:
            eta = self.eta(event)
            rest = describe_pace(loss=event.loss, speed=event.samples_per_second, eta=eta)
        self._screen.update(
            Progression(phase=phase, step=event.step, total=event.total_steps, rest=rest)
        )

    def eta(self, event: TrainingEvent) -> float | None:
        """Return the seconds to the end of the phase: the event's own estimate if it has one."""
        now = self._clock()
        begun, first = self._begun.setdefault(event.kind, (now, event.step))
        if event.eta_seconds is not None:
            return event.eta_seconds
        if not event.total_steps or event.step <= first:
            return None
        return (now - begun) / (event.step - first) * (event.total_steps - event.step)


def _line(event: TrainingEvent) -> str:
    """Return the permanent line for an event; empty if it has none."""
    if event.kind == "evaluated":
        return f"step {event.step}/{event.total_steps}  {format_metrics(event.metrics)}"
    if event.kind == "tested":
        return f"test  {format_metrics(event.metrics)}"
    is_early = event.kind == "finished" and event.step < event.total_steps
    if is_early or event.kind in ("loaded", "resumed", "yardsticks"):
        return printable(event.message)  # it names columns and classes
    return ""
