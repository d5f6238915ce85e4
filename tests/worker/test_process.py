"""``hifi worker`` as a process: what stops it from starting is one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.database.schema import downgrade, upgrade
from tests.waiting import patience

pytestmark = pytest.mark.process


def start(home: Path, **variables: str) -> str:
    """Run ``hifi worker`` until it gives up; return its last line on stderr."""
    environment = {name: value for name, value in os.environ.items() if name[:5] != "HIFI_"}
    done = subprocess.run(
        [sys.executable, "-m", "hifi.cli", "worker"],
        env={**environment, "HIFI_HOME": str(home), **variables},
        check=False,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_an_unreachable_database(tmp_path: Path):
    line = start(tmp_path, HIFI_DATABASE_URL=f"sqlite:///{tmp_path}/nowhere/hifi.db")
    assert line.startswith("hifi: error: the database cannot be reached (")
    assert "HIFI_DATABASE_URL" in line


def test_tables_of_another_version(tmp_path: Path):
    upgrade(f"sqlite:///{tmp_path}/hifi.db")
    downgrade(f"sqlite:///{tmp_path}/hifi.db", "0001")
    assert "is at revision 0001" in start(tmp_path)


def test_a_device_that_is_not_there(tmp_path: Path):
    upgrade(f"sqlite:///{tmp_path}/hifi.db")
    line = start(tmp_path, HIFI_DEVICE="cuda:7")
    assert line.startswith("hifi: error: the engine cannot start: ")
    assert "cuda:7" in line
    assert "SIGKILL" not in line
