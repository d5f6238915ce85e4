"""service.server and ``hifi serve --only gateway``: a process that starts, or reports why not."""

from __future__ import annotations

import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import pytest

from service.embedded.listening import free_loopback_port, listen
from store.settings import Settings
from tests.root import ROOT
from tests.waiting import eventually, patience

pytestmark = pytest.mark.process

SERVE = (sys.executable, "-m", "hifi.cli", "serve", "--only", "gateway")
FEW = 256  # open files


@contextmanager
def gateway(
    environment, *arguments, stderr=subprocess.PIPE, descriptors=4096
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run a gateway with few open files, which it may change; yield it and the URL it prints."""
    limits = f"ulimit -Sn {FEW}; ulimit -Hn {descriptors}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'{limits}; exec "$@"', "", *SERVE, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        line = process.stdout.readline()
        told = re.match(r"HiFi's gateway listens at (http://\S+)", line)
        assert told, (line, process.stderr and process.stderr.read())
        yield process, told[1]
    finally:
        process.kill()
        process.communicate()


def fail(environment, *arguments):
    """Run a gateway that cannot start; return its exit code and last line."""
    done = subprocess.run(
        [*SERVE, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(120),
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.fixture
def environment(tmp_path, sqlite_url):
    """Return the environment of a gateway on a free port, with tables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIFI_")}
    return {
        **kept,
        "HIFI_HOME": str(tmp_path / "home"),
        "HIFI_PORT": "0",
        "HIFI_DATABASE_URL": sqlite_url,
    }


@pytest.fixture
def many_files():
    """Let this process have as many open files as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answered(url, *, source):
    """Send a request from an address; return its status and how many seconds it took."""
    began = time.monotonic()
    address = urlsplit(url)
    line = http.client.HTTPConnection(
        address.hostname, address.port, timeout=patience(20), source_address=(source, 0)
    )
    with closing(line):
        line.request("GET", "/jobs")
        return line.getresponse().status, time.monotonic() - began


def resident_bytes(process):
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def open_files(process):
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


@pytest.mark.usefixtures("many_files")
class TestHostileConnections:
    @pytest.mark.parametrize(
        ("sent", "descriptors"),
        [
            (b"", 512),
            (b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n", 4096),
            (b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n{", 4096),
            (b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 9, 4096),
            (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", 4096),
        ],
        ids=["silent", "half a head", "half a body", "unread answers", "refused"],
    )
    def test_fifteen_hundred_keep_nobody_away(self, environment, tmp_path, sent, descriptors):
        log = tmp_path / "log"
        with (
            log.open("wb") as stream,
            gateway(environment, stderr=stream, descriptors=descriptors) as (process, url),
            ExitStack() as stack,
        ):
            before = open_files(process)
            answered(url, source="127.0.0.1")  # the first request takes longer
            _, alone = answered(url, source="127.0.0.1")
            place = urlsplit(url)
            for _ in range(1500):
                line = socket.create_connection(
                    (place.hostname, place.port), patience(20), source_address=("127.0.0.2", 0)
                )
                stack.enter_context(line)
                with suppress(OSError):
                    line.sendall(sent)
            for _ in range(5):
                status, seconds = answered(url, source="127.0.0.1")
                assert status == 200
                assert seconds < max(patience(2), 3 * alone)
                time.sleep(0.2)
            assert resident_bytes(process) < 200 << 20
            stack.close()
            eventually(lambda: open_files(process) <= before + 10)
            assert answered(url, source="127.0.0.2")[0] == 200
        assert log.stat().st_size < 1 << 20
        assert b"Traceback" not in log.read_bytes()


class TestLog:
    @pytest.mark.parametrize("form", ["text", "json"])
    def test_a_request_cannot_forge_a_line_of_it(self, environment, tmp_path, form):
        log = tmp_path / "log"
        forged = "2026-01-01T00:00:00Z [info     ] forged"
        told = f"a\u2028{forged}\u202e"
        with (
            log.open("wb") as stream,
            gateway({**environment, "HIFI_LOG_FORMAT": form}, stderr=stream) as (_, url),
        ):
            place = urlsplit(url)
            headers = f"Host: {place.netloc}\r\nX-Request-Id: {told}\r\nReferer: {told}\r\n\r\n"
            for path in (f"a\n{forged}", f"a\r\x1b[2J{forged}", f"a\x85{forged}", told):
                with socket.create_connection((place.hostname, place.port)) as line:
                    line.sendall(f"GET /jobs/{quote(path)} HTTP/1.1\r\n{headers}".encode())
                    line.settimeout(patience(20))
                    assert line.recv(12).split()[-1] in {b"400", b"404"}
            eventually(lambda: b"forged" in log.read_bytes(), message="the last request")
        written = log.read_bytes()
        lines = written.decode().split("\n")
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith("2026-01-01") for line in lines)


class TestGateway:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_prints_its_address_answers_and_stops(self, environment, number, code):
        with (
            gateway(environment) as (process, url),
            httpx2.Client(base_url=url, timeout=patience(60), trust_env=False) as client,
        ):
            answer = client.get("/healthz")  # a connection that is kept alive
            assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
            assert "server" not in answer.headers
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (4096, 4096)
            process.send_signal(number)
            _, err = process.communicate(timeout=patience(60))
        assert process.returncode == code
        assert "Traceback" not in err

    def test_serves_on_the_socket_of_a_supervisor(self, environment, tmp_path):
        with listen(Settings(home=tmp_path, port=0)) as listener:
            port = listener.getsockname()[1]
            process = subprocess.Popen(
                [*SERVE, "--listener", str(listener.fileno())],
                cwd=ROOT,
                env=environment,
                pass_fds=(listener.fileno(),),
                stderr=subprocess.DEVNULL,
            )
            try:
                answer = httpx2.get(
                    f"http://127.0.0.1:{port}/healthz", timeout=patience(60), trust_env=False
                )
                assert answer.status_code == 200
            finally:
                process.terminate()
                assert process.wait(timeout=patience(60)) == 0

    def test_missing_tables_are_one_line_with_what_to_do(self, environment, tmp_path):
        url = f"sqlite:///{tmp_path}/empty.db"
        code, line = fail({**environment, "HIFI_DATABASE_URL": url})
        assert code == 1
        assert line.startswith("hifi: error: the database has no tables yet")
        assert line.endswith("run `hifi migrate`")

    def test_a_database_that_is_away_is_one_line_without_its_password(self, environment):
        url = f"postgresql://me:geheim@127.0.0.1:{free_loopback_port()}/x"
        code, line = fail({**environment, "HIFI_DATABASE_URL": url})
        assert code == 1
        assert line.startswith("hifi: error: the database cannot be reached")
        assert "geheim" not in line

    def test_a_port_in_use_is_one_line(self, environment, tmp_path):
        with listen(Settings(home=tmp_path, port=0)) as listener:
            port = listener.getsockname()[1]
            code, line = fail(environment, "--port", str(port))
        assert code == 1
        assert f"cannot listen on 127.0.0.1:{port}" in line

    def test_a_wrong_setting_is_one_line(self, environment):
        code, line = fail({**environment, "HIFI_HOST": "0.0.0.0"})  # noqa: S104
        assert code == 1
        assert "HIFI_AUTH=keys" in line
