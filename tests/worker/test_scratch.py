"""worker.scratch: a folder lives as long as its process, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.scratch import own_folder

ROOT = Path(__file__).parent.parent.parent
HOLD = """
import pathlib, sys, time
from worker.scratch import own_folder
with own_folder(pathlib.Path(sys.argv[1]), label="x") as folder:
    (folder / "model").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Start a process that holds a folder; give it, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


class TestOwnFolder:
    def test_is_gone_afterwards(self, tmp_path: Path):
        with own_folder(tmp_path / "deep" / "er", label="infer") as folder:
            (folder / "models").mkdir()
            assert folder.name.startswith("infer-")
        assert list((tmp_path / "deep" / "er").iterdir()) == []

    def test_is_gone_after_a_failure(self, tmp_path: Path):
        with pytest.raises(RuntimeError), own_folder(tmp_path, label="x"):
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []

    def test_that_of_a_living_process_is_left_alone(self, other, tmp_path: Path):
        _, folder = other
        with own_folder(tmp_path, label="y"):
            assert folder.is_dir()

    def test_that_of_a_dead_one_is_removed(self, other, tmp_path: Path):
        process, folder = other
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert folder.is_dir()
        with own_folder(tmp_path, label="y") as ours:
            assert list(tmp_path.iterdir()) == [ours]
