"""Redis and Postgres servers that a test may stop and start."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from service.embedded.listening import free_loopback_port
from tests.waiting import eventually, patience


def missing(what: str) -> None:
    """Skip a test because a program is missing; fail it if HIFI_REQUIRE_SERVICES is 1."""
    message = f"no {what} on this machine"
    if os.environ.get("HIFI_REQUIRE_SERVICES") == "1":
        pytest.fail(message)
    pytest.skip(message)


class Server:
    """A server process whose port stays the same across restarts.

    Attributes:
        url: its address for clients.
    """

    url: str

    def __init__(self, command: list[str], *, user: str | None = None) -> None:
        self._command = command
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user
        )
        eventually(self.answers, seconds=30, message=self._command[0])

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it; SIGINT is a quick and clean shutdown for both kinds."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=patience(30))
            self._process = None

    def answers(self) -> bool:
        """Return whether it accepts requests."""
        raise NotImplementedError


class RedisServer(Server):
    """A Redis without persistence."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("redis-server")
        port = free_loopback_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": str(folder)}
        flags = [part for key, value in options.items() for part in (f"--{key}", value)]
        super().__init__([str(program), *flags])

    def answers(self) -> bool:
        """Return whether it accepts requests."""
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.ConnectionError:
            return False


class PostgresServer(Server):
    """A Postgres with an empty database."""

    def __init__(self, folder: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not programs:
            missing("postgres")
        program = programs[-1]
        # It refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        data = folder / "data"
        subprocess.run(
            [program.with_name("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        port = free_loopback_port()
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # it is stopped, but its machine goes on
        }
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        super().__init__([str(program), "-D", str(data), *flags], user=user)

    def answers(self) -> bool:
        """Return whether it accepts requests."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running(kind: type[Server]) -> Iterator[Server]:
    """Run a server until the end of a block."""
    # Not under pytest's own folders: those are closed to the user that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="hifi-server-") as name:
        server = kind(Path(name))  # type: ignore[call-arg, arg-type] # each kind takes a folder
        server.start()
        try:
            yield server
        finally:
            server.stop()
