"""Deployments shared by a module's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deployment import Deployment, deployed

# Short enough that a test sees a lease run out, and that a job leaves several checkpoints.
QUICK = {"LEASE_SECONDS": "3", "CHECKPOINT_SECONDS": "0.3", "DEVICE": "cpu"}


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Deployment]:
    """Give a deployment on SQLite, a folder and the embedded broker, with its tables made."""
    with deployed(tmp_path / "home", **QUICK) as deployment:
        deployment.run("migrate")
        yield deployment
