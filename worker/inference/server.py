"""Run the inference process as a server: socket, signals, and clean shutdown."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import uvicorn

from store.errors import SettingsError
from worker.inference.app import build_app
from worker.inference.stalling import StallingProtocol

if TYPE_CHECKING:
    from store.settings import Settings

_BACKLOG = 128
_GRACE_SECONDS = 10  # to finish sending models at shutdown
_OWNER_ONLY = 0o177  # the permission bits that the umask clears


def run_inference(settings: Settings) -> None:
    """Serve on this process's own address until SIGTERM or Ctrl-C.

    Raises:
        SettingsError: the address is ambiguous or cannot be used, or the artifact store's URL is of
            an unknown kind.
        KeyboardInterrupt: after Ctrl-C.
    """
    app = build_app(settings)
    with listen(settings.own_infer_url()) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=StallingProtocol,
                log_config=None,  # the caller has configured one stream for all logs
                access_log=False,
                server_header=False,
                ws="none",
                backlog=_BACKLOG,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        # uvicorn shuts down cleanly and then raises the signal again; it is ignored here.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listener])


@contextmanager
def listen(url: str) -> Iterator[socket.socket]:
    """Open the socket that a URL names.

    Args:
        url: ``http://host:port``, or ``unix:///path``, which only this user may connect to. The
            socket that a dead process left at the path is replaced, that of a live one is not.

    Yields:
        The listening socket; at the end it is closed and its path removed.

    Raises:
        SettingsError: the URL is of another kind, or the address is taken or not permitted.
    """
    path = _socket_path(url)
    try:
        listener = _listen_on(url) if path is None else _listen_at(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot listen on {url} (HIFI_INFER_LISTEN, or HIFI_INFER_URL): {reason}"
        ) from error
    with listener:
        try:
            yield listener
        finally:
            if path is not None:
                path.unlink(missing_ok=True)


def _socket_path(url: str) -> Path | None:
    address = urlsplit(url)
    is_path = address.scheme == "unix" and not address.netloc and bool(address.path)
    return Path(unquote(address.path)) if is_path else None


def _listen_on(url: str) -> socket.socket:
    address = urlsplit(url)
    if address.scheme != "http" or not address.hostname or address.port is None:
        raise ValueError("must be http://host:port or unix:///a/socket")
    family = socket.AF_INET6 if ":" in address.hostname else socket.AF_INET
    place = (address.hostname, address.port)
    return socket.create_server(place, family=family, backlog=_BACKLOG)


def _listen_at(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftover(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_OWNER_ONLY)  # a later chmod would leave a gap
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_leftover(path: Path) -> None:
    """Remove a socket on which no process listens any more."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError("the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise FileExistsError("another process is listening there")
        path.unlink()
