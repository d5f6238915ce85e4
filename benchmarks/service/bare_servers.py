"""Baselines for the gateway: servers that accept the same body and store nothing.

``python -m benchmarks.service.bare_servers KIND PORT`` serves ``POST /jobs`` until it is killed:
``loop`` and ``thread`` are FastAPI endpoints, ``async def`` and ``def``, that validate a job spec;
``socket`` parses nothing, to measure the load generator itself.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI

from benchmarks.service.deployment import START_SECONDS, is_listening
from service.embedded.listening import free_loopback_port
from store.jobs.spec import JobSpec  # noqa: TC001 - FastAPI needs it at run time
from tests.waiting import eventually

_KEEP_ALIVE_SECONDS = 30  # as the gateway's
_ACCEPTED = b'HTTP/1.1 202 Accepted\r\ncontent-length: 16\r\n\r\n{"object":"job"}'


def _app(kind: str) -> FastAPI:
    app = FastAPI()
    document = {"object": "job", "status": "queued"}

    def take(spec: JobSpec) -> dict[str, str]:  # noqa: ARG001 - only validated
        return document

    async def take_at_once(spec: JobSpec) -> dict[str, str]:  # noqa: ARG001 - as above
        return document

    app.post("/jobs", status_code=202)(take if kind == "thread" else take_at_once)
    return app


class _Socket(asyncio.Protocol):
    """Answers each received chunk."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def data_received(self, _data: bytes) -> None:
        self._transport.write(_ACCEPTED)


async def _answer_sockets(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Socket, "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def bare_server(kind: str) -> Iterator[int]:
    """Run a bare server and yield its port."""
    port = free_loopback_port()
    command = [sys.executable, "-m", "benchmarks.service.bare_servers", kind, str(port)]
    with subprocess.Popen(command) as process:  # noqa: S603 - this module
        try:
            eventually(partial(is_listening, port), seconds=START_SECONDS, message=kind)
            yield port
        finally:
            process.kill()


if __name__ == "__main__":
    KIND, PORT = sys.argv[1], int(sys.argv[2])
    if KIND == "socket":
        asyncio.run(_answer_sockets(PORT))
    else:
        uvicorn.run(  # with the settings of the gateway's own server
            _app(KIND),
            port=PORT,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
