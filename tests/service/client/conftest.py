"""A stub server, and a client of it whose waits take no time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.client import Client
from tests.service.stub_server import StubServer, stub_server


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with stub_server() as stub:
        yield stub


@pytest.fixture
def slept() -> list[float]:
    """Return the list of the client's waits in seconds."""
    return []


@pytest.fixture
def client(stub, slept) -> Iterator[Client]:
    with Client(stub.url, api_key="hifi_secret", timeout=5.0) as client:
        client._connection.sleep = slept.append
        yield client
