"""The folder of an embedded service: a lock for one service at a time, and its socket."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from service.embedded.listening import free_loopback_port
from store.errors import StoreError
from store.machine import make_private

_SOCKET_PATH_BYTES = 107  # the capacity of a Unix socket's address, without its final zero


class HomeError(StoreError):
    """The folder cannot be used, or is in use."""

    code = "home"


@contextmanager
def own_home(home: Path) -> Iterator[bool]:
    """Create the folder if it is missing, and lock it against other services during a block.

    The lock ends with the process, however the process ends.

    Yields:
        Whether the last service here was killed; then some of its processes may still be ending.

    Raises:
        HomeError: another service uses the folder, or it is not writable.
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
                f"HiFi is already served from {home}, by process {file.read().strip()}: stop it "
                "first, or choose another folder with HIFI_HOME"
            ) from error
        is_left_over = bool(file.read().strip())
        _write(file.fileno(), str(os.getpid()))
        try:
            yield is_left_over
        finally:
            _write(file.fileno(), "")


def make_home(home: Path) -> None:
    """Create the folder if it is missing; only its owner may enter it.

    Raises:
        HomeError: it cannot be created.
    """
    try:
        make_private(home)
    except OSError as error:
        raise _unusable(home, error) from error


def _unusable(home: Path, error: OSError) -> HomeError:
    return HomeError(
        f"cannot use {home} ({error.strerror or error}): set HIFI_HOME to a folder of your own"
    )


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode("ascii"), 0)


def inference_socket(home: Path) -> Path:
    """Return the socket of an embedded service's inference process."""
    return home / "infer.sock"


def choose_infer_url(home: Path) -> str:
    """Choose the address of an embedded service's inference process.

    It is a Unix socket in the folder, or a free port on loopback if the path is too long for one.
    """
    path = inference_socket(home)
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return f"unix://{quote(str(path))}"
    return f"http://127.0.0.1:{free_loopback_port()}"
