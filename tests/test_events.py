"""hifi.events: what the caller hears and may answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hifi.errors import InvalidArgumentError, JobCancelled
from hifi.events import Control, Emitter, TrainingEvent


def emit(answer: object) -> bool:
    return Emitter(lambda _: answer).emit("step", message="step 1", step=1)  # type: ignore[arg-type]


class TestAnswers:
    @pytest.mark.parametrize("answer", [None, Control.CONTINUE])
    def test_to_go_on(self, answer: Control | None):
        assert emit(answer) is False

    def test_to_pause(self):
        assert emit(Control.PAUSE) is True

    def test_to_cancel(self):
        emitter = Emitter(lambda _: Control.CANCEL)
        emitter.checkpoint = Path("step-00000003")
        with pytest.raises(JobCancelled, match="step 4 of 9") as caught:
            emitter.emit("step", message="step 4 of 9")
        assert caught.value.checkpoint == Path("step-00000003")

    @pytest.mark.parametrize("answer", [True, False, "pause", 0, object()])
    def test_any_other_is_refused(self, answer: object):
        with pytest.raises(InvalidArgumentError, match="Control"):
            emit(answer)

    def test_without_a_listener_all_goes_on(self):
        assert Emitter(None).emit("step", message="") is False


class TestEvents:
    def test_are_numbered(self):
        heard: list[TrainingEvent] = []
        emitter = Emitter(heard.append)
        emitter.emit("loading", message="a")
        emitter.number = 40
        emitter.emit("step", message="b", step=7, total_steps=9, loss=0.5, metrics={"f1": 1.0})
        assert [event.number for event in heard] == [1, 41]
        assert heard[0].metrics == {}
        assert (heard[1].kind, heard[1].step, heard[1].loss) == ("step", 7, 0.5)

    def test_are_known_without_torch(self):
        code = "import sys, hifi.events; print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"
