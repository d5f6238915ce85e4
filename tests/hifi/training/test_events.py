"""hifi.training.events: the events that a caller gets, and its possible answers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hifi.errors import InvalidArgumentError, JobCancelled, JobPaused
from hifi.training.events import Control, Emitter, TrainingEvent

STEP = TrainingEvent(kind="step", message="step 4 of 9", step=4)


def emit(answer: object) -> Emitter:
    emitter = Emitter(lambda _: answer)  # type: ignore[arg-type,return-value]
    emitter.checkpoint = Path("step-00000003")
    emitter.emit(STEP)
    return emitter


class TestAnswers:
    @pytest.mark.parametrize("answer", [None, Control.CONTINUE])
    def test_to_go_on(self, answer: Control | None):
        emitter = emit(answer)
        assert not emitter.is_pause_wanted
        emitter.stop_if_requested("now")

    def test_to_pause(self):
        emitter = emit(Control.PAUSE)
        assert emitter.is_pause_wanted
        with pytest.raises(JobPaused, match="after step 4") as caught:
            emitter.stop_if_requested("after step 4")
        assert caught.value.checkpoint == Path("step-00000003")

    def test_a_pause_is_remembered(self):
        answers = iter([Control.PAUSE, Control.CONTINUE, None])
        emitter = Emitter(lambda _: next(answers))
        for _ in range(3):
            emitter.emit(STEP)
        assert emitter.is_pause_wanted

    def test_to_cancel(self):
        with pytest.raises(JobCancelled, match="step 4 of 9") as caught:
            emit(Control.CANCEL)
        assert caught.value.checkpoint == Path("step-00000003")

    @pytest.mark.parametrize("answer", [True, False, "pause", 0, object(), np.zeros(2)])
    def test_any_other_answer_is_refused(self, answer: object):
        with pytest.raises(InvalidArgumentError, match="Control"):
            emit(answer)

    def test_without_a_listener_the_run_continues(self):
        emitter = Emitter(None)
        emitter.emit(STEP)
        assert (emitter.number, emitter.is_pause_wanted) == (1, False)


class TestEvents:
    def test_are_numbered(self):
        heard: list[TrainingEvent] = []
        emitter = Emitter(heard.append)
        emitter.emit(TrainingEvent(kind="loading"))
        emitter.number = 40
        emitter.emit(STEP)
        assert [event.number for event in heard] == [1, 41]
        assert [replace(event, number=0) for event in heard] == [
            TrainingEvent(kind="loading"),
            STEP,
        ]

    @pytest.mark.process
    def test_are_known_without_torch(self):
        code = "import sys, hifi.training.events; print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"
