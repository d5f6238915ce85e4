"""Show the progress of jobs and transfers, like that of a local fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hifi.cli.output import format_bytes, format_metrics, printable
from hifi.cli.progress import COUNTING, Progression, Screen, describe_pace, new_bars

if TYPE_CHECKING:
    from rich.console import Console

    from service.client.documents import Event
    from service.client.documents import Progress as JobProgress


class JobDisplay:
    """Shows a job's events and progress on a screen."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._step: Mapping[str, Any] = {}  # the newest step of the current run

    def show_event(self, event: Event) -> None:
        """Show an event."""
        if event["type"] == "step":
            self._step = event["data"]
        elif event["type"] == "status" or event["level"] == "warn":
            self._step = {}
        if line := _line(event):
            self._screen.say(line)

    def show_progress(self, progress: JobProgress) -> None:
        """Show the job's progress."""
        self._screen.update(progression_of(progress, step=self._step))


def progression_of(progress: JobProgress, *, step: Mapping[str, Any] | None = None) -> Progression:
    """Return the progression to show for a job; ``step`` is the data of its newest step event."""
    phase = progress["phase"] or "queued"
    known = step if step and phase == "training" else {}
    rest = describe_pace(
        loss=known.get("loss"), speed=known.get("samples_per_second"), eta=progress["eta_seconds"]
    )
    return Progression(
        phase=phase,
        step=progress["step"] or 0,
        total=progress["total_steps"],
        rest=rest if phase in COUNTING else "",
    )


def _line(event: Event) -> str:
    """Describe an event in one line; empty if another line or the bar shows it."""
    data = event["data"]
    if event["type"] in ("selection", "step"):
        return ""  # the status event after it shows the selection, the bar shows steps
    if event["type"] == "metrics":
        metrics = {name: value for name, value in data.items() if name != "step"}
        return f"step {data.get('step')}  {format_metrics(metrics)}"
    if event["type"] == "test":
        return f"test  {format_metrics(data)}"
    if event["type"] == "status":
        return printable(f"{data.get('status')}: {event['message']}")
    return printable(event["message"])


@contextmanager
def transfer_display(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar of a transfer during a block, if the console is a terminal.

    The block gets a function that takes the bytes so far and the total, None if unknown.
    """
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    with new_bars(console) as progress:
        bar = progress.add_task(title, total=None, count="", rest="")

        def show(done: int, total: int | None) -> None:
            of = "" if total is None else f" of {format_bytes(total)}"
            count = f"{format_bytes(done)}{of}"
            progress.update(bar, completed=done, total=total, count=count)

        yield show
