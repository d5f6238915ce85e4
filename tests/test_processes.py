"""tests.processes: an unmarked test starts no process, whichever way it tries."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.processes import WATCH, ProcessStartedError

NOTHING = [sys.executable, "-c", ""]


class TestUnmarked:
    @pytest.mark.parametrize(
        "start",
        [
            lambda: subprocess.Popen(NOTHING),
            lambda: asyncio.run(asyncio.create_subprocess_exec(*NOTHING)),
            lambda: os.posix_spawn(NOTHING[0], NOTHING, os.environ),
            lambda: os.system("true"),  # noqa: S605, S607 - it is not reached
            os.fork,
        ],
        ids=["Popen", "asyncio", "posix_spawn", "system", "fork"],
    )
    def test_fails_before_a_process_starts(self, start):
        with pytest.raises(ProcessStartedError):
            start()
        with pytest.raises(pytest.fail.Exception, match="starts a process: mark it"):
            WATCH.check()

    def test_fails_even_if_the_refusal_is_caught(self):
        with suppress(RuntimeError):
            subprocess.Popen(NOTHING)
        with pytest.raises(pytest.fail.Exception, match="starts a process: mark it"):
            WATCH.check()


class TestMarked:
    @pytest.mark.process
    def test_may_start_one(self):
        assert subprocess.run(NOTHING, check=False).returncode == 0
