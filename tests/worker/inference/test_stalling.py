"""worker.inference.stalling: a connection ends when its client takes nothing, and not before."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.gateways import serving
from tests.waiting import patience
from worker.inference import stalling
from worker.inference.stalling import StallingProtocol

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

PIECE = bytes(1 << 20)
STALL = 0.5


class Endless:
    """Sends without an end; ``ended`` is set when it is told that its client has gone."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Serve one request."""
        await receive()  # its end
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stalling, "STALL_SECONDS", STALL)
    app = Endless()
    options = {"host": "127.0.0.1", "port": 0, "lifespan": "off", "http": StallingProtocol}
    with serving(app, **options) as server:
        yield app, server.servers[0].sockets[0].getsockname()[1]


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


class TestStallingProtocol:
    def test_ends_when_the_client_reads_nothing(self, endless: Any):
        app, port = endless
        with connect(port) as client:
            assert app.ended.wait(patience(10))
            client.settimeout(patience(10))
            with suppress(ConnectionResetError):
                while client.recv(1 << 20):
                    pass  # what the system had taken already

    def test_goes_on_while_the_client_reads_slowly(self, endless: Any):
        app, port = endless
        with connect(port) as client:
            end = time.monotonic() + 4 * STALL
            while time.monotonic() < end:
                assert client.recv(1 << 20)
                time.sleep(STALL / 20)
            assert not app.ended.is_set()
        assert app.ended.wait(patience(10))
