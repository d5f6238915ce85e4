"""Open a server's listening socket, before anything else starts."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING

from store.errors import StoreError

if TYPE_CHECKING:
    from store.settings import Settings

BACKLOG = 2048  # connections that wait to be accepted
_UNSENT_BYTES = 128 << 10  # of a connection in the kernel, which else takes megabytes of an answer
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the address from this machine


class ListenError(StoreError):
    """The server cannot listen on the address."""

    code = "listen"


def listen(settings: Settings, *, patience: float = 0.0) -> socket.socket:
    """Open the gateway's listening socket; port 0 means any free port.

    A port that is in use is waited for, ``patience`` seconds long.

    Raises:
        ListenError: the port is in use, or not permitted.
    """
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + patience
    while True:
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise ListenError(
                    f"cannot listen on {host}:{port} ({_reason(error)}): choose another "
                    "port with --port or HIFI_PORT, or 0 for any free port"
                ) from error
            time.sleep(0.1)
        else:
            # Connections inherit these options. asyncio sets the first only on sockets that it
            # creates; without it an answer of two packets waits 40 ms for its acknowledgement.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
            return listener


def _reason(error: OSError) -> str:
    """Return the system's words for an error, to which Python adds the address once more."""
    return str(error) if error.errno is None else os.strerror(error.errno)


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, as seen from this machine."""
    host, port = listener.getsockname()[:2]
    host = reachable_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reachable_host(host: str) -> str:
    """Return the host to connect to from this machine when a server listens on ``host``."""
    return _ANY.get(host, host)


def free_loopback_port() -> int:
    """Return a port on which no process is listening right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
