"""How a fine-tune's progress looks: a bar where a person watches, plain lines where not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from hifi.cli.render import format_metrics, format_seconds, printable

if TYPE_CHECKING:
    from rich.console import Console

    from hifi.training.events import TrainingEvent

LINE_SECONDS = 10.0  # between two plain lines about the same thing

_TITLES = {
    "loading": "loading",
    "selecting": "scoring heads",
    "step": "training",
    "evaluating": "evaluating",
}

_COUNTING = ("selecting", "step")  # whose step counts up to total_steps in this phase


class Display(Protocol):
    """Shows the events of one run."""

    def show(self, event: TrainingEvent) -> None:
        """Show one event."""

    def make_room(self) -> AbstractContextManager[None]:
        """Let something else print for the time of a block."""


@contextmanager
def progress_display(console: Console) -> Iterator[Display]:
    """Show progress for the time of a block.

    Args:
        console: of stderr.

    Yields:
        A bar with the time that is left, if ``console`` is a terminal; else something that prints
        plain lines at intervals.
    """
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rest]}"),
        console=console,
        transient=True,
    ) as progress:
        yield BarDisplay(progress)


class BarDisplay:
    """One bar per phase, gone when the phase is over; what stays is a line per evaluation.

    Args:
        progress: a started rich progress with a field ``rest``.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._pace = Pace()

    def show(self, event: TrainingEvent) -> None:
        """Show one event."""
        if event.kind not in _TITLES:
            self._close(*self._bars)
            if line := _line(event):
                self._progress.console.print(escape(line), highlight=False)
            return
        others = [kind for kind in self._bars if kind not in (event.kind, "step")]
        self._close(*others)
        if event.kind not in self._bars:
            title = _TITLES[event.kind]
            self._bars[event.kind] = self._progress.add_task(title, total=None, count="", rest="")
        count = _count(event)
        self._progress.update(
            self._bars[event.kind],
            completed=event.step,
            total=event.total_steps if count else None,
            count=count,
            rest=escape(_rest(event, eta=self._pace.eta(event))),
        )

    @contextmanager
    def make_room(self) -> Iterator[None]:
        """Take the bars away for the time of a block."""
        self._progress.stop()
        yield
        self._progress.start()

    def _close(self, *kinds: str) -> None:
        for kind in kinds:
            self._progress.remove_task(self._bars.pop(kind))


class LineDisplay:
    """Plain lines: each phase's beginning, every evaluation, and steps at intervals.

    Args:
        console: of stderr.
        clock: seconds, for tests.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._pace = Pace(clock=clock)
        self._kind = ""
        self._last: dict[str, float] = {}

    def show(self, event: TrainingEvent) -> None:
        """Show one event, unless it says little more than the last line."""
        eta = self._pace.eta(event)
        if event.kind not in _TITLES:
            if line := _line(event):
                self._print(line)
            return
        now = self._clock()
        is_last = bool(_count(event)) and event.step == event.total_steps
        if event.kind == "evaluating" != self._kind:
            self._last[event.kind] = now  # most are over before a line about them is of use
        self._kind = event.kind
        last = self._last.get(event.kind, -math.inf)
        if now - last < LINE_SECONDS and not is_last:
            return
        self._last[event.kind] = now
        title = _TITLES[event.kind] if _count(event) else ""
        self._print(" ".join(filter(None, (title, _count(event), _rest(event, eta=eta)))))

    @contextmanager
    def make_room(self) -> Iterator[None]:
        """Do nothing: lines are in nobody's way."""
        yield

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Pace:
    """Estimate the time that a phase still takes from the time that it took so far.

    Args:
        clock: seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, int]] = {}

    def eta(self, event: TrainingEvent) -> float | None:
        """Give the seconds to the end of the phase; the event's own estimate where it has one."""
        if event.kind not in _COUNTING:
            return None
        now = self._clock()
        begun, first = self._begun.setdefault(event.kind, (now, event.step))
        if event.eta_seconds is not None:
            return event.eta_seconds
        if not event.total_steps or event.step <= first:
            return None
        return (now - begun) / (event.step - first) * (event.total_steps - event.step)


def _line(event: TrainingEvent) -> str:
    """Say in one line what an event that is no mere progress tells."""
    if event.kind == "evaluated":
        return f"step {event.step}/{event.total_steps}  {format_metrics(event.metrics)}"
    is_early = event.kind == "finished" and event.step < event.total_steps
    if is_early or event.kind in ("loaded", "resumed"):
        return printable(event.message)  # it names columns and classes
    return ""  # the rest is told with the results


def _count(event: TrainingEvent) -> str:
    if event.kind not in _COUNTING or not event.total_steps:
        return ""
    return f"{event.step}/{event.total_steps}"


def _rest(event: TrainingEvent, *, eta: float | None) -> str:
    if event.kind not in _COUNTING:
        return event.message
    parts = []
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.samples_per_second is not None:
        parts.append(f"{event.samples_per_second:.0f} samples/s")
    if eta is not None:
        parts.append(f"ETA {format_seconds(eta)}")
    return "  ".join(parts)
