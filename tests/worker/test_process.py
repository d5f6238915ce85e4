"""``hifi worker`` as a process: what stops it from starting is one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from store.database.schema import downgrade, upgrade
from store.settings import Settings
from tests.waiting import eventually, patience
from worker.catalog import Catalog
from worker.engine import handle
from worker.process import _keep

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


def test_the_engine_that_describes_backbones_is_told_apart_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(handle, "sys", SimpleNamespace(executable=str(program)))
    settings = Settings(home=tmp_path, models=tmp_path / "models")
    settings.models.mkdir()
    jobs = handle.EngineProcess(device="cpu", environment=os.environ)
    with structlog.testing.capture_logs() as entries:
        keeper = _keep(SimpleNamespace(settings=settings), Catalog(settings))
        keeper.start()
        try:
            eventually(lambda: len(entries) == 1)
            jobs.start()
        finally:
            jobs.kill()
            keeper.close()
    started = [entry["purpose"] for entry in entries if entry["event"] == "engine started"]
    assert started == ["describing backbones", "jobs"]


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
