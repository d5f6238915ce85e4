"""worker.inference.server and ``hifi infer``: the address, its permissions, and shutdown."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from hifi.cli import main
from store import logs
from store.errors import SettingsError
from tests.root import ROOT
from tests.waiting import eventually, patience
from worker.inference import merging, server
from worker.inference.app import build_app
from worker.inference.server import listen

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home

KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
BIG = 64 << 20  # more than all buffers on the way take


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("inference")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, order: dict) -> http.client.HTTPResponse:
    body = json.dumps(order)
    connection.request("POST", "/merged", body=body, headers={"Content-Type": "application/json"})
    return connection.getresponse()


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a folder with a short path: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="hifi-") as folder:
        yield Path(folder)


class TestListen:
    def test_on_a_unix_socket_of_this_user_alone(self, short: Path):
        path = short / "run" / "a b.sock"
        with listen(f"unix://{short}/run/a%20b.sock"):
            mode = path.lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
        assert not path.exists()

    def test_replaces_a_stale_socket(self, short: Path):
        path = short / "old.sock"
        left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        left.bind(str(path))
        left.close()
        with listen(f"unix://{path}"), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    def test_not_where_another_process_listens(self, short: Path):
        url = f"unix://{short}/x.sock"
        with listen(url):
            with (
                pytest.raises(SettingsError, match="another process is listening there"),
                listen(url),
            ):
                pass
            assert (short / "x.sock").exists()

    def test_not_in_the_place_of_a_file(self, short: Path):
        (short / "file").write_text("mine")
        url = f"unix://{short}/file"
        with pytest.raises(SettingsError, match="exists and is not a socket"), listen(url):
            pass
        assert (short / "file").read_text() == "mine"

    def test_on_a_port(self):
        with listen("http://127.0.0.1:0") as listener:
            port = listener.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            with pytest.raises(SettingsError, match=f"cannot listen on .*:{port} "), listen(url):
                pass

    @pytest.mark.parametrize(
        "url",
        [
            *("http://127.0.0.1", "https://127.0.0.1:1", "http://:1", "http://127.0.0.1:x", ""),
            *("unix://host/path", "unix://", f"unix:///tmp/{'x' * 200}", "127.0.0.1:8001"),
        ],
    )
    def test_nowhere_else(self, url: str):
        with pytest.raises(SettingsError, match="HIFI_INFER_LISTEN"), listen(url):
            pass


class TestHangUp:
    """A client that hangs up half-way leaves no model on disk and frees its place."""

    @pytest.fixture
    def socket_path(self, home: Home, short: Path) -> Iterator[Path]:
        path = short / "infer.sock"
        with listen(f"unix://{path}") as listener:
            config = uvicorn.Config(build_app(home.settings), log_config=None, ws="none")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            eventually(lambda: server.started)
            yield path
            server.should_exit = True
            thread.join()

    def test_in_the_middle_of_the_model(
        self,
        socket_path: Path,
        home: Home,
        order: dict,
        monkeypatch: pytest.MonkeyPatch,
    ):
        def write_much(folder: Path, **_: Any) -> None:
            with (folder / "model.safetensors").open("wb") as file:
                file.truncate(BIG)

        monkeypatch.setattr(merging, "write_merged_model", write_much)
        for _ in range(10):  # more often than there are places
            connection = SocketConnection(socket_path)
            response = ask(connection, order)
            assert response.status == 200
            assert len(response.read(1000)) == 1000
            assert len(home.left_behind) == 1
            response.close()
            connection.close()
            eventually(lambda: not home.left_behind)
        connection = SocketConnection(socket_path)
        assert len(ask(connection, order).read()) > BIG
        connection.close()
        eventually(lambda: not home.left_behind)


class TestCommand:
    @pytest.fixture
    def process(self, home: Home, short: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
        """Start ``hifi infer`` on a socket."""
        path = short / "infer.sock"
        settings = {
            "HIFI_HOME": str(home.settings.home),
            "HIFI_MODELS": str(home.settings.models),
            "HIFI_INFER_URL": f"unix://{path}",
            "HIFI_INFER_TOKEN": "sesame",
            "HIFI_LOG_FORMAT": "json",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "hifi.cli", "infer"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            eventually(lambda: path.exists() or process.poll() is not None)
            assert process.poll() is None
            yield process, path
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.process
    def test_serves_until_it_is_stopped(
        self, process: tuple[subprocess.Popen, Path], home: Home, order: dict
    ):
        running, path = process
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        connection = SocketConnection(path)
        assert ask(connection, order).read().startswith(b'{"type": "urn:hifi:problem:unauthorized"')
        body, headers = json.dumps(order), {"Authorization": "Bearer sesame", "X-Request-Id": "r1"}
        connection.request("POST", "/merged", body=body, headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        assert len(response.read()) == int(response.headers["Content-Length"])
        running.send_signal(signal.SIGTERM)
        _, log = running.communicate(timeout=patience(30))
        assert running.returncode == 0
        assert not path.exists()
        assert list((home.settings.home / "inference").iterdir()) == []
        lines = [json.loads(line) for line in log.splitlines()]
        merged = next(line for line in lines if line["event"] == "merged")
        ids = (merged["process"], merged["request_id"], merged["tenant"], merged["job"])
        assert ids == ("inference", "r1", order["tenant"], order["job"])
        assert "sesame" not in log

    def test_reports_wrong_settings(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        home.settings.home.chmod(0o700)
        monkeypatch.setenv("HIFI_HOME", str(home.settings.home))
        monkeypatch.setenv("HIFI_INFER_URL", "unix://nowhere")
        monkeypatch.setattr(logs, "configure_logging", lambda *_, **__: None)  # it is the process's
        monkeypatch.setenv(KERNELS, "16")
        assert main(["infer"]) == 1
        assert (
            "cannot listen on unix://nowhere (HIFI_INFER_LISTEN, or HIFI_INFER_URL)"
            in capsys.readouterr().err
        )

    def test_listens_where_its_argument_says(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HIFI_INFER_URL", "http://127.0.0.1:1,http://127.0.0.1:2")
        monkeypatch.setenv("HIFI_INFER_LISTEN", "")  # so that what follows is undone
        monkeypatch.setattr(logs, "configure_logging", lambda *_, **__: None)
        seen = []
        monkeypatch.setattr(server, "run_inference", lambda it: seen.append(it.own_infer_url()))
        assert main(["infer", "--listen", "http://127.0.0.1:2"]) == 0
        assert seen == ["http://127.0.0.1:2"]

    @pytest.mark.parametrize(("given", "kept"), [(None, "16"), ("512", "512")])
    def test_caches_few_kernels_by_default(
        self, monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
    ):
        monkeypatch.setenv(KERNELS, given or "")  # so that what follows is undone
        if given is None:
            monkeypatch.delenv(KERNELS)
        monkeypatch.setattr(logs, "configure_logging", lambda *_, **__: None)
        seen = []
        monkeypatch.setattr(server, "run_inference", lambda _: seen.append(os.environ[KERNELS]))
        assert main(["infer"]) == 0
        assert seen == [kept]
