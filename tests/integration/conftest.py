"""Deployments shared by several test modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.served import Served, served


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the embedded service; a test that kills it restarts it."""
    with served(tmp_path_factory.mktemp("service") / "home") as service:
        yield service
