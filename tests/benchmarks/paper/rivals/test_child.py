"""benchmarks.paper.rivals.child: it answers, or its end is an error with its last words."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.paper.rivals.channel import Message
from benchmarks.paper.rivals.child import Child, ChildError, start
from benchmarks.paper.rivals.environments import RivalEnvironmentError
from hifi.errors import HifiError

pytestmark = pytest.mark.process

ECHO = """
import os, sys
from benchmarks.paper.rivals.channel import Message, serve

def twice(message):
    print("a library's greeting")
    os.write(1, b"and one from C")
    return Message({**message.content, "variable": os.environ["OMP_NUM_THREADS"]},
                   {name: 2 * value for name, value in message.tensors.items()})

def fail(message):
    raise RuntimeError("no such adapter")

serve({"twice": twice, "fail": fail, "end": lambda message: os._exit(3)})
"""
NONSENSE = "print('Loading weights: 100%', flush=True); input()"
SLEEP = "import sys, time; print('thinking', file=sys.stderr, flush=True); time.sleep(600)"
CLOSED = "import os, time; os.close(1); time.sleep(600)"

RunScript = Callable[[str], Child]


@pytest.fixture
def child(tmp_path: Path) -> RunScript:
    def make(script: str) -> Child:
        path = tmp_path / "script.py"
        path.write_text(f"import sys; sys.path.insert(0, '.')\n{textwrap.dedent(script)}")
        return Child([sys.executable, str(path)])

    return make


class TestAsk:
    def test_answers_come_back_whatever_is_printed(self, child: RunScript):
        with child(ECHO) as process:
            for value in (1.0, 3.0):
                tensors = {"x": torch.full((100_000,), value)}  # more than a pipe holds
                answer = process.ask("twice", Message({"n": value}, tensors))
                assert answer.content["n"] == value
                assert torch.equal(answer.tensors["x"], 2 * tensors["x"])

    def test_it_has_as_many_threads_as_the_harness(self, child: RunScript):
        with child(ECHO) as process:
            found = process.ask("twice", Message()).content["variable"]
        assert found == str(torch.get_num_threads())

    def test_an_exception_there_is_an_error_here(self, child: RunScript):
        pattern = "fail: the process has ended with status 1; its last words: RuntimeError: no such"
        with child(ECHO) as process, pytest.raises(ChildError, match=pattern):
            process.ask("fail", Message())

    def test_a_silent_end_is_an_error(self, child: RunScript):
        pattern = "end: the process has ended with status 3; its last words: none"
        with child(ECHO) as process, pytest.raises(ChildError, match=pattern):
            process.ask("end", Message())

    def test_one_that_has_ended_before_is_an_error(self, child: RunScript):
        large = Message(tensors={"x": torch.ones(100_000)})
        with child("sys.exit('out of memory')") as process:
            with pytest.raises(ChildError, match="status 1; its last words: out of memory"):
                process.ask("twice", large)
            with pytest.raises(ChildError, match="status 1"):
                process.ask("twice", large)

    def test_nonsense_is_quoted(self, child: RunScript):
        pattern = "has answered with no message: b'Loading weights: 100%"
        with child(NONSENSE) as process, pytest.raises(ChildError, match=pattern):
            process.ask("twice", Message())

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_one_that_hangs_is_killed(self, child: RunScript, size: int):
        begin = time.monotonic()
        pattern = r"has not answered within 1\.5 s; its last words: thinking"
        message = Message(tensors={"x": torch.ones(size)})  # the larger cannot even be written
        with child(SLEEP) as process, pytest.raises(ChildError, match=pattern):
            process.ask("twice", message, seconds=1.5)
        assert time.monotonic() - begin < 60

    def test_one_that_closes_its_output_is_killed(
        self, child: RunScript, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("benchmarks.paper.rivals.child._GRACE", 0.2)
        with child(CLOSED) as process, pytest.raises(ChildError, match="ended with status -9"):
            process.ask("twice", Message())

    def test_the_error_is_one_of_ours(self):
        assert issubclass(ChildError, HifiError)


def test_it_ends_with_the_block(child: RunScript):
    with child(SLEEP) as process:
        assert process._process.poll() is None
    assert process._process.poll() == -9


@pytest.mark.usefixtures("rivals_folder")
def test_a_missing_environment_starts_nothing():
    with pytest.raises(RivalEnvironmentError, match="setfit needs its own environment"):
        start("setfit", module="setfit_child")
