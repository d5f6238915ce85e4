"""worker.engine.handle and worker.engine.process: a real child, what it says, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_tasks import save_text_model
from tests.waiting import eventually, patience, within
from tests.worker.scripted_engine import nowhere_job
from worker.engine import handle as module
from worker.engine.handle import EngineDiedError, EngineProcess
from worker.engine.messages import (
    Control,
    DescribeBackbones,
    Described,
    EngineEvent,
    Failed,
    Message,
    Ready,
)

pytestmark = pytest.mark.process

SECONDS = 120.0
_WORKER = """
import os, sys, time
from worker.engine.handle import EngineProcess
engine = EngineProcess(device="cpu", environment=os.environ)
engine.start()
engine.wait_until_ready()
print("engine", engine.pid, flush=True)
time.sleep(600)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def running() -> Iterator[EngineProcess]:
    engine = EngineProcess(device="cpu", environment=environment())
    engine.start()
    engine.wait_until_ready()
    yield engine
    engine.close()


@pytest.fixture
def engine(running: EngineProcess) -> EngineProcess:
    """Return an engine that is ready, a new one if the last test ended it."""
    running.start()
    if not running.is_ready:
        running.wait_until_ready()
    return running


def hear(engine: EngineProcess) -> Message:
    """Wait for the next message."""
    message = engine.receive(timeout=patience(SECONDS))
    assert message is not None, "the engine says nothing"
    return message


def hear_out(engine: EngineProcess, run: str) -> Failed:
    """Wait for the last message of a run that fails, past what it tells before."""
    while isinstance(message := hear(engine), EngineEvent):
        assert message.run == run
    assert isinstance(message, Failed)
    assert message.run == run
    return message


class TestCommands:
    def test_backbones_are_described_one_by_one_and_a_broken_one_stops_no_other(
        self, engine: EngineProcess, tmp_path: Path
    ):
        save_text_model(tmp_path / "good")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{}")
        folders = {name: str(tmp_path / name) for name in ("broken", "good")}
        engine.send(DescribeBackbones(backbones=folders))
        broken, good = hear(engine), hear(engine)
        assert isinstance(broken, Described)
        assert isinstance(good, Described)
        assert (broken.id, broken.description) == ("broken", None)
        assert broken.error
        assert good.description is not None
        assert good.description["id"] == "good"
        assert hear(engine) == Ready()

    def test_a_failing_job_is_reported_and_the_next_one_runs(self, engine: EngineProcess):
        pid = engine.pid
        for run in ("one", "two"):
            engine.send(Control(run="another", stop_request="cancel"))  # of a run that is over
            engine.send(nowhere_job(run))
            last = hear_out(engine, run)
            assert (last.code, last.is_lasting) == ("model_invalid", True)
        assert engine.pid == pid

    def test_nothing_is_sent_unasked(self, engine: EngineProcess):
        assert engine.receive(timeout=0.1) is None


class TestDeath:
    def test_is_detected_and_reported_with_its_cause(self, engine: EngineProcess):
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDiedError, match=r"killed by SIGKILL .*memory") as caught:
            hear(engine)
        assert caught.value.code == "engine_crashed"
        with pytest.raises(EngineDiedError):
            engine.send(nowhere_job("late"))

    def test_earlier_messages_are_still_received(self, engine: EngineProcess):
        engine.send(nowhere_job("last"))
        assert engine.pid is not None
        eventually(lambda: engine._messages.qsize() == 2, seconds=SECONDS)  # its event, its end
        os.kill(engine.pid, signal.SIGKILL)
        assert hear_out(engine, "last").code == "model_invalid"
        with pytest.raises(EngineDiedError):
            hear(engine)

    def test_another_one_is_started_in_its_place(self, engine: EngineProcess):
        before = engine.pid
        engine.kill()
        assert engine.pid is None
        with pytest.raises(EngineDiedError, match="is not running"):
            engine.send(nowhere_job("nobody's"))
        engine.start()
        assert not engine.is_ready
        engine.wait_until_ready()
        assert engine.pid != before

    def test_a_failed_start_is_reported(self, monkeypatch: pytest.MonkeyPatch):
        broken = {**environment(), "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
        engine = EngineProcess(device="cpu", environment=broken)
        engine.start()
        with pytest.raises(EngineDiedError, match="exit code 1"):
            engine.wait_until_ready()
        engine.kill()
        monkeypatch.setattr(module, "_START_SECONDS", 0.01)
        late = EngineProcess(device="cpu", environment=environment())
        late.start()
        with pytest.raises(EngineDiedError, match="not ready"):
            late.wait_until_ready()
        assert late.pid is None


class TestEnd:
    def test_comes_when_its_worker_closes_the_pipe(self):
        engine = EngineProcess(device="cpu", environment=environment())
        engine.start()
        engine.wait_until_ready()
        pid = engine.pid
        with within(10):
            engine.close(seconds=3600)
        assert not Path(f"/proc/{pid}").exists()

    def test_comes_when_its_worker_is_killed(self):
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdout=subprocess.PIPE, env=environment()
        )
        assert worker.stdout is not None
        with worker.stdout:
            line = next(line for line in worker.stdout if line.startswith(b"engine "))
            pid = int(line.split()[1])
        worker.kill()
        worker.wait()
        eventually(lambda: not Path(f"/proc/{pid}").exists(), seconds=10)
