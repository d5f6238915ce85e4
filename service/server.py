"""Run the gateway: the application in uvicorn, on a socket that is already open."""

from __future__ import annotations

import gc
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from service.app import build_app
from service.embedded.outages import outages_in_one_line
from store.errors import StoreError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from store.settings import Settings

_GRACE_SECONDS = 10  # to finish sending responses at shutdown
_KEEP_ALIVE_SECONDS = 30
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


class StartError(StoreError):
    """The gateway cannot start."""

    code = "start"


def run_gateway(settings: Settings, listener: socket.socket) -> None:
    """Serve requests until SIGTERM or Ctrl-C; running responses are finished first.

    Args:
        settings: from the environment.
        listener: a listening socket, from :func:`service.embedded.listening.listen`.

    Raises:
        StoreError: the gateway cannot start; the message says what to do.
        KeyboardInterrupt: after Ctrl-C.
    """
    app = _Startup(build_app(settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,  # the caller has configured one stream for all logs
            access_log=False,  # the application writes its own, with request ids
            server_header=False,
            proxy_headers=False,  # callers are identified by their keys, not by their addresses
            ws="none",
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    # Objects that exist now stay: without freezing them, the collector would scan all of them again
    # and again, for a tenth of a second each time, in which no request is answered. Requests leave
    # little garbage in cycles: collecting rarely raises the throughput by a tenth.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    # uvicorn shuts down cleanly and then raises the signal again; it is ignored here. Unlike
    # SIG_IGN, a function is not inherited by child processes.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listener])
    except SystemExit as stop:
        raise app.failure or StartError(f"uvicorn stopped with exit code {stop.code}") from stop


class _Startup:
    """An application that keeps the reason why it cannot start; uvicorn would print a traceback.

    Args:
        app: the application.

    Attributes:
        failure: the error at the start; None if there was none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: StoreError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the application's startup and shutdown."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def pass_on(message: Message) -> None:
            if message["type"] != "lifespan.startup.failed":
                await send(message)

        try:
            with outages_in_one_line():
                await self._app(scope, receive, pass_on)
        except StoreError as error:
            self.failure = error
            await send({"type": "lifespan.startup.failed", "message": error.code})
