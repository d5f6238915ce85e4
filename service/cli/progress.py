"""How long work looks: a bar where a person watches, plain lines where not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from service.cli.output import format_bytes, format_metrics, format_seconds, printable

if TYPE_CHECKING:
    from rich.console import Console

    from service.client.documents import Event
    from service.client.documents import Progress as JobProgress

LINE_SECONDS = 10.0  # between two plain lines about the same thing

_TITLES = {
    "queued": "waiting",
    "loading": "loading",
    "selecting": "scoring heads",
    "training": "training",
    "evaluating": "evaluating",
    "writing": "writing",
}
_COUNTING = frozenset({"selecting", "training"})  # phases whose step counts up to total_steps


class JobDisplay(Protocol):
    """Shows what happens to a job."""

    def show_event(self, event: Event) -> None:
        """Show an event."""

    def show_progress(self, progress: JobProgress) -> None:
        """Show how far the job is."""


@contextmanager
def job_display(console: Console) -> Iterator[JobDisplay]:
    """Show a job for the time of a block.

    Args:
        console: of stderr.

    Yields:
        A bar, if ``console`` is a terminal; else something that prints plain lines at intervals.
    """
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with _bar(console) as progress:
        yield BarDisplay(progress)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rest]}"),
        console=console,
        transient=True,
    )


class BarDisplay:
    """One bar for what the job does now; what stays is a line for each thing worth keeping.

    Args:
        progress: a started rich progress with the fields ``count`` and ``rest``.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None
        self._step = _Step()

    def show_event(self, event: Event) -> None:
        """Show an event."""
        self._step.take(event)
        if line := _line(event):
            self._progress.console.print(escape(line), highlight=False)

    def show_progress(self, progress: JobProgress) -> None:
        """Show how far the job is."""
        if self._bar is None:
            self._bar = self._progress.add_task("", total=None, count="", rest="")
        phase, count = progress["phase"] or "queued", count_steps(progress)
        self._progress.update(
            self._bar,
            description=_TITLES.get(phase, phase),
            completed=progress["step"] or 0,
            total=progress["total_steps"] if count else None,
            count=count,
            rest=_rest(progress, step=self._step),
        )


class LineDisplay:
    """Plain lines: every event worth one, and how far the job is at intervals.

    Args:
        console: of stderr.
        clock: seconds, for tests.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._step = _Step()
        self._told: dict[str, float] = {}
        self._ended = ""  # the phase whose last step was told

    def show_event(self, event: Event) -> None:
        """Show an event."""
        self._step.take(event)
        if line := _line(event):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show_progress(self, progress: JobProgress) -> None:
        """Show how far the job is, unless that says little more than the last line."""
        phase, count = progress["phase"] or "", count_steps(progress)
        if not count:
            return  # an event has told of it, or will
        now = self._clock()
        is_last = progress["step"] == progress["total_steps"]
        is_soon = now - self._told.get(phase, -math.inf) < LINE_SECONDS
        if phase == self._ended if is_last else is_soon:
            return
        self._told[phase], self._ended = now, phase if is_last else ""
        line = " ".join(filter(None, (_TITLES[phase], count, _rest(progress, step=self._step))))
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Step:
    """What the newest step told; nothing any more once its run is over."""

    def __init__(self) -> None:
        self.text = ""

    def take(self, event: Event) -> None:
        if event["type"] == "status" or event["level"] == "warn":
            self.text = ""
        if event["type"] != "step":
            return
        loss, speed = (event["data"].get(name) for name in ("loss", "samples_per_second"))
        parts = ["" if loss is None else f"loss {loss:.3f}"]
        parts.append("" if speed is None else f"{speed:.0f} samples/s")
        self.text = "  ".join(filter(None, parts))


def _line(event: Event) -> str:
    """Say in one line what an event tells; an empty one where others say it."""
    data = event["data"]
    if event["type"] in ("selection", "step"):
        return ""  # the move to training, right behind it, tells of one; the bar of the other
    if event["type"] == "metrics":
        metrics = {name: value for name, value in data.items() if name != "step"}
        return f"step {data.get('step')}  {format_metrics(metrics)}"
    if event["type"] == "status":
        return printable(f"{data.get('status')}: {event['message']}")
    return printable(event["message"])


def count_steps(progress: JobProgress) -> str:
    """Write how many steps of a phase are done, as ``20/80``; empty where a phase has none."""
    if progress["phase"] not in _COUNTING or not progress["total_steps"]:
        return ""
    return f"{progress['step'] or 0}/{progress['total_steps']}"


def _rest(progress: JobProgress, *, step: _Step) -> str:
    if progress["phase"] not in _COUNTING:
        return ""
    eta = progress["eta_seconds"]
    parts = [step.text if progress["phase"] == "training" else ""]
    parts.append("" if eta is None else f"ETA {format_seconds(eta)}")
    return "  ".join(filter(None, parts))


@contextmanager
def transfer_display(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far an upload or a download is, for the time of a block.

    Args:
        console: of stderr.
        title: what is done.

    Yields:
        A function that takes the bytes so far, and all of them where that is known. Where nobody
        watches nothing is shown.
    """
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    with _bar(console) as progress:
        bar = progress.add_task(title, total=None, count="", rest="")

        def show(done: int, total: int | None) -> None:
            of = "" if total is None else f" of {format_bytes(total)}"
            count = f"{format_bytes(done)}{of}"
            progress.update(bar, completed=done, total=total, count=count)

        yield show
