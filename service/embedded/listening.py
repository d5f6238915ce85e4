"""Where a server listens: its socket, bound before anything else is done."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING

from store.errors import StoreError

if TYPE_CHECKING:
    from store.settings import Settings

_BACKLOG = 2048
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it is reached from here


class ListenError(StoreError):
    """The address cannot be listened on."""

    code = "listen"


def listen(settings: Settings, *, patience: float = 0.0) -> socket.socket:
    """Open the gateway's listening socket.

    Args:
        settings: its host and port; with port 0 a free one is taken.
        patience: seconds to wait for a port that is in use.

    Raises:
        ListenError: it is in use, or not ours to take.
    """
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + patience
    while True:
        try:
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise ListenError(
                    f"cannot listen on {host}:{port} ({error.strerror or error}): choose another "
                    "port with --port or HIFI_PORT, 0 for any that is free"
                ) from error
            time.sleep(0.1)
        else:
            # Connections take it over. asyncio sees to it where it has made the socket itself;
            # without it an answer of two packets waits 40 ms for the caller's acknowledgement.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener


def url_of(listener: socket.socket) -> str:
    """Give the URL under which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = reachable_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reachable_host(host: str) -> str:
    """Give the host by which a server is reached from this machine that listens on ``host``."""
    return _ANY.get(host, host)


def free_loopback_port() -> int:
    """Find a port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
