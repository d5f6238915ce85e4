"""worker.engine.handle and worker.engine.process: a real child, what it says, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from store.jobs.spec import JobSpec
from tests.hifi.data.files import jsonl
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
    RunJob,
)

pytestmark = pytest.mark.process

SECONDS = 120.0
MEMORY = 1 << 30  # torch and transformers take half of it
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


def huge_job(run: str, *, model: Path, data: dict[str, str], folder: Path) -> RunJob:
    """Return a job whose steps need gigabytes."""
    training = {"batch_size": 512, "max_length": 1024, "precision": "float32"}
    spec = {"model": "m", "dataset": "ds_1", "k": 1, "n_samples": 8, "training": training}
    return RunJob(
        run=run,
        spec=JobSpec.model_validate(spec),
        data=data,
        model=str(model),
        revision=None,
        device="cpu",
        checkpoints=str(folder / "checkpoints"),
        checkpoint_seconds=60.0,
        max_seconds=3600.0,
        state_memory_bytes=None,
        output=str(folder / "output"),
    )


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


class TestStart:
    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_loads_what_a_first_description_needs(self):
        engine = EngineProcess(device="cpu", environment=environment())
        engine.start()
        try:
            engine.wait_until_ready()
            assert "/sklearn/" in Path(f"/proc/{engine.pid}/maps").read_text()
        finally:
            engine.kill()


class TestNiceness:
    def test_is_added_only_once_it_is_ready(self):
        engine = EngineProcess(device="cpu", environment=environment(), niceness=3)
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        engine.start()
        try:
            assert engine.pid is not None
            assert os.getpriority(os.PRIO_PROCESS, engine.pid) == mine
            engine.wait_until_ready()
            assert os.getpriority(os.PRIO_PROCESS, engine.pid) == mine + 3
        finally:
            engine.kill()

    def test_is_that_of_the_worker_unless_given(self, engine: EngineProcess):
        assert engine.pid is not None
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, engine.pid) == mine


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

    def test_a_device_that_is_not_there_is_named(self):
        engine = EngineProcess(device="cuda:7", environment=environment())
        engine.start()
        with pytest.raises(EngineDiedError, match=r"the engine cannot start: .*cuda:7"):
            engine.wait_until_ready()
        engine.kill()

    def test_one_that_does_not_end_is_not_taken_for_killed(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        program = tmp_path / "engine"
        program.write_text("#!/bin/sh\nexec sleep 600 >&-\n")
        program.chmod(0o700)
        monkeypatch.setattr(module, "_DYING_SECONDS", 0.05)
        monkeypatch.setattr(module, "sys", SimpleNamespace(executable=str(program)))
        engine = EngineProcess(device="cpu", environment=environment())
        engine.start()
        with pytest.raises(EngineDiedError, match="did not end within") as caught:
            engine.wait_until_ready()
        assert "SIGKILL" not in str(caught.value)
        engine.kill()

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


class TestMemory:
    def test_a_job_beyond_the_limit_fails_with_it_and_the_engine_goes_on(self, tmp_path: Path):
        save_text_model(tmp_path / "model", max_position_embeddings=1024)
        rows = [{"text": "word " * 1000, "label": row % 2} for row in range(512)]
        data = {"train": str(jsonl(tmp_path / "train.jsonl", rows))}
        engine = EngineProcess(device="cpu", environment=environment(), memory=MEMORY)
        engine.start()
        try:
            engine.wait_until_ready()
            pid = engine.pid
            for run in ("first", "second"):
                engine.send(huge_job(run, model=tmp_path / "model", data=data, folder=tmp_path))
                last = hear_out(engine, run)
                assert (last.code, last.is_lasting) == ("out_of_memory", True), last.text
                assert f"{MEMORY} bytes" in last.text
            assert (engine.pid, engine.jobs) == (pid, 2)
        finally:
            engine.kill()
        assert engine.jobs == 0


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
