"""Run the gateway: the application in uvicorn, on a socket that is already open."""

from __future__ import annotations

import gc
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from service.app import build_app
from service.connections.limits import Connections, raise_descriptor_limit, within_descriptors
from service.connections.protocol import limited_by
from service.embedded.listening import BACKLOG
from store.database.outages import outages_in_one_line
from store.errors import StoreError
from store.resources.memory import return_large_blocks

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from store.settings import Settings

_GRACE_SECONDS = 10  # to finish sending responses at shutdown
_KEEP_ALIVE_SECONDS = 30
_ACCEPTED_AT_ONCE = 32
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
    return_large_blocks()
    app = _Startup(build_app(settings))
    most = within_descriptors(settings.max_connections, descriptors=raise_descriptor_limit())
    connections = Connections(most=most, most_per_caller=settings.max_connections_per_address)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,  # the caller has configured one stream for all logs
            access_log=False,  # the application writes its own, with request ids
            server_header=False,
            # A connection belongs to the address that opened it, whatever its requests claim.
            proxy_headers=False,
            http=limited_by(connections),
            backlog=_ACCEPTED_AT_ONCE,
            callback_notify=connections.check_all,
            timeout_notify=0,  # at every tick of uvicorn's main loop, which is a second
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


class _Server(uvicorn.Server):
    """Accepts few connections at a time, so that their number is checked before more are open."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; asyncio takes one number for the connections that wait and those accepted."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)


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
