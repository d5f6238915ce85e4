"""hifi.cli.progress: a bar for people, lines for logs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from hifi.cli.progress import Bars, Display, Lines, open_screen
from hifi.data.run_warnings import RunWarning
from hifi.training.events import TrainingEvent


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def step(number, *, total=100, **more):
    return TrainingEvent(kind="step", number=number, step=number, total_steps=total, **more)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(clock):
    """Return a line display and a function that returns the lines printed so far."""
    stream = io.StringIO()
    display = Display(Lines(Console(file=stream, width=40), clock=clock), clock=clock)
    return display, lambda: stream.getvalue().splitlines()


class TestLines:
    def test_steps_are_reported_at_intervals_and_at_the_end(self, lines, clock):
        display, printed = lines
        for number in range(1, 101):
            clock.now = 0.3 * number
            display.show(step(number))
        steps = [line.split()[1] for line in printed()]
        assert steps == ["1/100", "35/100", "69/100", "100/100"]

    def test_a_line_has_loss_speed_and_time_left(self, lines):
        display, printed = lines
        display.show(step(4, loss=0.5, samples_per_second=41.7, eta_seconds=75))
        assert printed() == ["training 4/100 loss 0.500  42 samples/s  ETA 1:15"]

    def test_every_evaluation_is_reported(self, lines):
        display, printed = lines
        for number in (10, 20):
            display.show(
                TrainingEvent(
                    kind="evaluated",
                    number=number,
                    step=number,
                    total_steps=20,
                    metrics={"f1": number / 100},
                )
            )
        assert printed() == ["step 10/20  f1 0.1000", "step 20/20  f1 0.2000"]

    def test_progress_of_an_evaluation_is_reported_only_if_it_is_long(self, lines, clock):
        display, printed = lines
        for number, clock.now in enumerate((0, 5, 11), start=1):
            message = f"validation batch {number} of 9"
            display.show(TrainingEvent(kind="evaluating", number=number, message=message))
        assert printed() == ["validation batch 3 of 9"]

    def test_each_evaluation_has_its_own_clock(self, lines, clock):
        display, printed = lines
        for number, clock.now in enumerate((0, 20, 40), start=1):
            display.show(step(number))
            display.show(TrainingEvent(kind="evaluating", number=number, message="batch 1 of 9"))
        assert not any("batch" in line for line in printed())

    def test_long_lines_are_not_wrapped(self, lines):
        display, printed = lines
        display.show(TrainingEvent(kind="loading", number=1, message="loading " + "x" * 99))
        assert len(printed()) == 1


@pytest.mark.parametrize("kind", ["loaded", "resumed"])
@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_of_the_data_are_replaced(kind, terminal):
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=terminal, width=200)
    with open_screen(console) as screen:
        display = Display(screen)
        display.show(TrainingEvent(kind=kind, number=1, message="by \x1b]0;pwn\nlabel"))
    assert "by ?]0;pwn?label" in drawn.getvalue()


def test_the_metrics_of_the_test_split_are_reported(lines):
    display, printed = lines
    metrics = {"loss": 0.5, "f1": 0.25}
    display.show(TrainingEvent(kind="tested", number=1, step=9, total_steps=9, metrics=metrics))
    assert printed() == ["test  f1 0.2500  loss 0.5000"]


def test_an_early_stop_is_reported_and_a_planned_end_is_not(lines):
    display, printed = lines
    for number, done in enumerate((100, 40)):
        message = f"stopped after step {done}"
        event = TrainingEvent(kind="finished", step=done, total_steps=100, message=message)
        display.show(replace(event, number=number))
    assert printed() == ["stopped after step 40"]


class TestTimeLeft:
    def test_is_estimated_from_the_duration_of_the_steps(self, lines, clock):
        display, _ = lines
        assert display.eta(step(10)) is None
        clock.now = 4.0
        assert display.eta(step(30)) == pytest.approx(14.0)  # 20 steps in 4 s, 70 to go

    def test_the_events_own_estimate_comes_first(self, lines):
        display, _ = lines
        assert display.eta(step(10, eta_seconds=3)) == 3


class TestWarnings:
    def test_that_later_events_repeat_are_shown_once(self):
        stream = io.StringIO()
        known = RunWarning(code="rare_classes", message="few rows", param="label")
        new = RunWarning(code="one_class", message="one class", param="learning_rate")
        with open_screen(Console(file=stream)) as screen:
            display = Display(screen)
            display.show(TrainingEvent(kind="loaded", warnings=(known,)))
            display.show(TrainingEvent(kind="yardsticks", message="starts", warnings=(known,)))
            display.show(TrainingEvent(kind="finished", warnings=(known, new)))
        assert (
            stream.getvalue().split("\n")
            == [*("", "warning: few rows", "starts", "warning: one class", "")][1:]
        )


class TestBars:
    def test_a_terminal_gets_a_bar_and_others_get_lines(self):
        with open_screen(Console(file=io.StringIO(), force_terminal=True)) as screen:
            assert isinstance(screen, Bars)
        with open_screen(Console(file=io.StringIO())) as screen:
            assert isinstance(screen, Lines)

    def test_shows_step_count_and_time_left_and_keeps_evaluations(self):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=True, width=100, color_system=None)
        with open_screen(console) as screen:
            display = Display(screen)
            display.show(TrainingEvent(kind="loading", number=1, message="loading the model"))
            display.show(step(40, loss=0.25, eta_seconds=75))
            with display.make_room():
                stream.write("| heat map |")
            display.show(step(41, eta_seconds=74))
            display.show(TrainingEvent(kind="evaluating", number=2, message="batch 1 of 2"))
            display.show(TrainingEvent(kind="evaluated", number=3, metrics={"f1": 0.5}))
            display.show(step(42, eta_seconds=73))
        text = stream.getvalue()
        for part in ("training", "40/100", "ETA 1:15", "| heat map |", "f1 0.5000", "42/100"):
            assert part in text
