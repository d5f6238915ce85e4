"""service.cli.progress: the output on a terminal and in a file."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from hifi.cli.progress import LINE_SECONDS, Lines, open_screen
from service.cli.progress import JobDisplay, transfer_display


def event(kind, message="told", level="info", **data):
    return {"id": "evt_1", "type": kind, "level": level, "message": message, "data": data}


def progress(phase, step=None, total=None, eta=None):
    return {"phase": phase, "step": step, "total_steps": total, "eta_seconds": eta}


@pytest.fixture
def lines():
    """Return a plain console, and a function that returns its lines so far."""
    console = Console(file=io.StringIO(), width=20)
    return console, lambda: console.file.getvalue().splitlines()


class TestLines:
    def test_shows_steps_at_intervals_and_the_last(self, lines):
        console, told = lines
        now = 0.0
        display = JobDisplay(Lines(console, clock=lambda: now))
        for step in range(1, 5):
            data = {"step": step, "loss": 1 / step, "samples_per_second": 99.6}
            display.show_event(event("step", **data))
            display.show_progress(progress("training", step, 4, eta=4.0 - step))
            now += LINE_SECONDS * 0.6
        assert told() == [
            "training 1/4 loss 1.000  100 samples/s  ETA 0:03",
            "training 3/4 loss 0.333  100 samples/s  ETA 0:01",
            "training 4/4 loss 0.250  100 samples/s  ETA 0:00",
        ]

    def test_shows_the_metrics_of_the_test_split(self, lines):
        console, told = lines
        JobDisplay(Lines(console)).show_event(event("test", accuracy=0.5, loss=1.25))
        assert told() == ["test  accuracy 0.5000  loss 1.2500"]

    @pytest.mark.parametrize(
        "end", [event("status", status="queued"), event("message", level="warn")]
    )
    def test_steps_of_a_lost_run_are_not_mixed_with_the_next_ones(self, lines, end):
        console, told = lines
        display = JobDisplay(Lines(console))
        display.show_event(event("step", step=60, loss=0.5, samples_per_second=99.6))
        display.show_event(end)
        display.show_progress(progress("training", 1, 80, eta=9.0))
        assert told()[-1] == "training 1/80 ETA 0:09"

    def test_the_last_step_is_shown_once(self, lines):
        console, told = lines
        display = JobDisplay(Lines(console))
        for _ in range(3):
            display.show_progress(progress("selecting", 300, 300))
        assert told() == ["scoring heads 300/300"]

    def test_phases_without_a_count_are_shown_by_their_events(self, lines):
        console, told = lines
        display = JobDisplay(Lines(console))
        display.show_progress(progress("loading"))
        display.show_progress(progress("evaluating", 3, 4))
        display.show_progress(progress(None))
        display.show_event(event("status", "a worker has it", status="validating"))
        assert told() == ["validating: a worker has it"]

    def test_long_lines_are_not_wrapped_and_steer_nothing(self, lines):
        console, told = lines
        JobDisplay(Lines(console)).show_event(event("message", "x" * 50 + "\x1b[2J[red]"))
        assert told() == ["x" * 50 + "?[2J[red]"]


class TestJobDisplay:
    def test_is_a_bar_on_a_terminal(self):
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with open_screen(console) as screen:
            display = JobDisplay(screen)
            display.show_progress(progress(None))
            display.show_event(event("step", loss=0.5, samples_per_second=None))
            display.show_event(event("metrics", step=3, accuracy=0.5))
            display.show_progress(progress("training", 3, 9, eta=65))
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
        assert "step 3  accuracy 0.5000" in plain
        assert re.search(r"training +\S+ 3/9 loss 0.500  ETA 1:05", plain)

    def test_a_new_phase_of_a_newer_server_is_shown_as_it_is(self):
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with open_screen(console) as screen:
            display = JobDisplay(screen)
            display.show_progress(progress("compressing", 1, 2))
        assert "compressing" in console.file.getvalue()


class TestTransferDisplay:
    def test_is_silent_without_a_terminal(self, lines):
        console, told = lines
        with transfer_display(console, "uploading") as show:
            show(1, 2)
        assert told() == []

    def test_counts_bytes_on_a_terminal(self):
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with transfer_display(console, "uploading") as show:
            show(1500, 3000)
            show(1500, None)
        assert (
            "1.50 kB of 3.00 kB" in console.file.getvalue() or "1.50 kB" in console.file.getvalue()
        )
