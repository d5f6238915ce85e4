"""Environments of rivals: stand-ins, which are made at once, and those that are really there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.paper.rivals.environments import VARIABLE, requirements
from benchmarks.paper.running import Workplace
from hifi.backbones.models import resolve_model

_REAL = os.environ.get(VARIABLE)
MakeEnvironment = Callable[..., None]


@pytest.fixture
def rivals_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of environments, where the harness looks."""
    folder = tmp_path / "rivals"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


@pytest.fixture
def stand_in(rivals_folder: Path) -> MakeEnvironment:
    """Return the function that makes an environment whose interpreter is ours.

    It runs a module of our own, or a script in its place.
    """

    def make(name: str, *, script: Path | None = None) -> None:
        folder = rivals_folder / name
        (folder / "bin").mkdir(parents=True)
        (folder / "installed.txt").write_text(requirements(name), encoding="utf-8")
        program = folder / "bin" / "python"
        words = f"{sys.executable} " + ('"$@"' if script is None else str(script))
        program.write_text(f"#!/bin/sh\nexec {words}\n", encoding="utf-8")
        program.chmod(0o755)

    return make


@pytest.fixture
def real_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the test unless there are environments of rivals."""
    if not _REAL:
        pytest.skip(f"{VARIABLE} is unset: it names the folder of the rivals' environments")
    monkeypatch.setenv(VARIABLE, _REAL)


@pytest.fixture
def minilm_workplace(glue: Path, minilm_path: Path) -> Workplace:
    """Return a real backbone, large enough for every adapter, and the tiny GLUE."""
    return Workplace(data=glue / "data" / "glue", source=resolve_model(minilm_path))
