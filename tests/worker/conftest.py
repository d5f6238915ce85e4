"""A worker with short pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.shop import Shop
from worker import checkpoint_keeper, reporting, runner


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten a worker's pauses to milliseconds."""
    monkeypatch.setattr(reporting, "_REPORT_SECONDS", 0.001)
    monkeypatch.setattr(reporting, "_PAUSE_SECONDS", 0.01)
    for module in (runner, checkpoint_keeper):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def shop(tmp_path: Path, no_waiting: None) -> Iterator[Shop]:  # noqa: ARG001 - it works quickly
    """Open a worker with one queued job."""
    shop = Shop(tmp_path / "home")
    yield shop
    shop.database.close()
