"""How a job's progress and a transfer look: as a fine-tune of the library does."""

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
    """Shows what happens to a job.

    Args:
        screen: where to.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._step: Mapping[str, Any] = {}  # of the run that goes on, the newest

    def show_event(self, event: Event) -> None:
        """Show an event."""
        if event["type"] == "step":
            self._step = event["data"]
        elif event["type"] == "status" or event["level"] == "warn":
            self._step = {}
        if line := _line(event):
            self._screen.say(line)

    def show_progress(self, progress: JobProgress) -> None:
        """Show how far the job is."""
        self._screen.update(progression_of(progress, step=self._step))


def progression_of(progress: JobProgress, *, step: Mapping[str, Any] | None = None) -> Progression:
    """Describe how far a job is.

    Args:
        progress: as the server writes it.
        step: what the event of the newest step says.
    """
    phase = progress["phase"] or "queued"
    told = step if step and phase == "training" else {}
    rest = describe_pace(
        loss=told.get("loss"), speed=told.get("samples_per_second"), eta=progress["eta_seconds"]
    )
    return Progression(
        phase=phase,
        step=progress["step"] or 0,
        total=progress["total_steps"],
        rest=rest if phase in COUNTING else "",
    )


def _line(event: Event) -> str:
    """Describe an event in one line; an empty one where others say it."""
    data = event["data"]
    if event["type"] in ("selection", "step"):
        return ""  # the move to training, right behind it, tells of one; the bar of the other
    if event["type"] == "metrics":
        metrics = {name: value for name, value in data.items() if name != "step"}
        return f"step {data.get('step')}  {format_metrics(metrics)}"
    if event["type"] == "status":
        return printable(f"{data.get('status')}: {event['message']}")
    return printable(event["message"])


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
    with new_bars(console) as progress:
        bar = progress.add_task(title, total=None, count="", rest="")

        def show(done: int, total: int | None) -> None:
            of = "" if total is None else f" of {format_bytes(total)}"
            count = f"{format_bytes(done)}{of}"
            progress.update(bar, completed=done, total=total, count=count)

        yield show
