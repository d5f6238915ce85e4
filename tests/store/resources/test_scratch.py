"""store.resources.scratch: a folder belongs to its process while that lives, and goes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store.resources.scratch import own_folder
from tests.waiting import patience

pytestmark = pytest.mark.process

_MANY = """
import sys
from pathlib import Path
import pytest

from store.resources.scratch import own_folder
for _ in range(60):
    with own_folder(Path(sys.argv[1]), label="w") as folder:
        (folder / "mine").write_text("x")
        assert (folder / "mine").is_file()
"""
_HOLD = """
import sys, time
from pathlib import Path
import pytest

from store.resources.scratch import own_folder
with own_folder(Path(sys.argv[1]), label="w") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def start(code: str, parent: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(parent)], stdout=subprocess.PIPE, text=True
    )


class TestOwnFolder:
    def test_goes_with_its_block(self, tmp_path: Path):
        with own_folder(tmp_path / "work", label="w") as folder:
            assert folder.is_dir()
            assert str(os.getpid()) in folder.name
        assert list((tmp_path / "work").iterdir()) == []

    def test_processes_that_start_together_do_not_take_each_others(self, tmp_path: Path):
        processes = [start(_MANY, tmp_path) for _ in range(4)]
        assert [process.wait(timeout=patience(60)) for process in processes] == [0] * 4
        for process in processes:
            assert process.stdout is not None
            process.stdout.close()

    def test_of_a_killed_process_is_removed_by_the_next(self, tmp_path: Path):
        process = start(_HOLD, tmp_path)
        assert process.stdout is not None
        held = Path(process.stdout.readline().strip())
        orphans: list[str] = []
        with own_folder(tmp_path, label="w", on_orphan=orphans.append):
            assert held.is_dir()
        assert orphans == []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with own_folder(tmp_path, label="w", on_orphan=orphans.append):
            assert not held.exists()
        assert orphans == [held.name]
