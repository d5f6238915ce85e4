"""The gateway as a process: uvicorn around the application, on a socket that is open already."""

from __future__ import annotations

import gc
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from service.app import build_app
from service.embedded.outages import told_outages
from store.errors import StoreError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from store.settings import Settings

_GRACE_SECONDS = 10  # for answers that are on their way when the gateway is to end
_KEEP_ALIVE_SECONDS = 30
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


class StartError(StoreError):
    """The gateway cannot be started."""

    code = "start"


def run_gateway(settings: Settings, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; answers on their way are finished first.

    Args:
        settings: from the environment.
        listener: a listening socket, as :func:`service.embedded.listening.listen` gives it.

    Raises:
        StoreError: it cannot be started; the message says what to do.
        KeyboardInterrupt: after Ctrl-C.
    """
    app = _Startup(build_app(settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,  # one stream for all, set up by the caller
            access_log=False,  # the application writes its own, with its ids
            server_header=False,
            proxy_headers=False,  # who asks is known by the key; nobody's address is used
            ws="none",
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    # What is loaded by now stays: the collector would look at all of it again and again, each time
    # for a tenth of a second, in which nobody is answered. And what a request leaves is no garbage
    # that it has to look for every few requests: a tenth more are answered where it seldom does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    # uvicorn ends in order and then raises the signal again, for those who want to die of it.
    signal.signal(signal.SIGTERM, _ignore)
    try:
        server.run(sockets=[listener])
    except SystemExit as stop:
        raise app.failure or StartError(f"uvicorn stopped with exit code {stop.code}") from stop


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


class _Startup:
    """An application that tells why it cannot start, where uvicorn would print a traceback.

    Args:
        app: the application.

    Attributes:
        failure: why it cannot start; None while it can.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: StoreError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the application's own start and end."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def pass_on(message: Message) -> None:
            if message["type"] != "lifespan.startup.failed":
                await send(message)

        try:
            with told_outages():
                await self._app(scope, receive, pass_on)
        except StoreError as error:
            self.failure = error
            await send({"type": "lifespan.startup.failed", "message": error.code})
