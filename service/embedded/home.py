"""The folder of an embedded service: one service at a time, and where its parts meet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from service.embedded.listening import free_loopback_port
from store.errors import StoreError

_SOCKET_PATH_BYTES = 107  # what a Unix socket's address holds, without its final zero


class HomeError(StoreError):
    """The folder cannot be used, or is in use."""

    code = "home"


@contextmanager
def own_home(home: Path) -> Iterator[bool]:
    """Make the folder if need be, and keep other services out of it for the time of a block.

    The lock ends with the process, however that ends.

    Args:
        home: HIFI_HOME.

    Yields:
        Whether the last service here ended without saying so, so that parts of it may still be
        on their way out.

    Raises:
        HomeError: another process serves from it, or it cannot be written.
    """
    make_home(home)
    try:
        lock = os.open(home / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(home, error) from error
    with os.fdopen(lock, "r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HomeError(
                f"HiFi is served from {home} already, by process {file.read().strip()}: stop that "
                "one first, or choose another folder with HIFI_HOME"
            ) from error
        is_left_over = bool(file.read().strip())
        _write(file.fileno(), str(os.getpid()))
        try:
            yield is_left_over
        finally:
            _write(file.fileno(), "")


def make_home(home: Path) -> None:
    """Make the folder if need be, for its owner's eyes alone.

    Raises:
        HomeError: it cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(home, error) from error


def _unusable(home: Path, error: OSError) -> HomeError:
    return HomeError(
        f"cannot use {home} ({error.strerror or error}): name a folder of yours with HIFI_HOME"
    )


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode("ascii"), 0)


def inference_socket(home: Path) -> Path:
    """Name the socket of an embedded service's inference process."""
    return home / "infer.sock"


def choose_infer_url(home: Path) -> str:
    """Choose where the inference process of an embedded service listens.

    Returns:
        A Unix socket in the folder; a free port on loopback where its path is too long for one.
    """
    path = inference_socket(home)
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return f"unix://{quote(str(path))}"
    return f"http://127.0.0.1:{free_loopback_port()}"
