"""service.health: a container is healthy when its process does its work."""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from service.embedded.home import choose_infer_url
from service.embedded.listening import free_loopback_port
from service.health import gateway_is_healthy, inference_is_healthy, main, worker_is_healthy
from store.database.connection import Database
from store.jobs.workers import leave, register
from store.settings import Settings
from tests.root import ROOT
from tests.service.stub_server import document, stub_server


@contextmanager
def on_unix_socket(path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Log nothing."""

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


class TestGateway:
    def test_is_healthy_if_it_answers_under_an_allowed_host(self, tmp_path):
        with stub_server() as stub:
            stub.on("GET", "/healthz", document({"status": "alive"}))
            port = int(stub.url.rpartition(":")[2])
            settings = Settings(
                home=tmp_path,
                host="0.0.0.0",  # noqa: S104
                auth="keys",
                port=port,
                allowed_hosts=("hifi.example",),
            )
            assert gateway_is_healthy(settings)
            assert stub.asked[0].headers["host"] == "hifi.example"

    def test_is_unhealthy_if_it_refuses_or_is_away(self, tmp_path):
        with stub_server() as stub:
            settings = Settings(home=tmp_path, port=int(stub.url.rpartition(":")[2]))
            assert not gateway_is_healthy(settings)
        assert not gateway_is_healthy(settings)


class TestInference:
    def test_over_tcp(self, tmp_path):
        with stub_server() as stub:
            stub.on("GET", "/healthz", document({}))
            assert inference_is_healthy(Settings(home=tmp_path, infer_url=stub.url))
            everywhere = stub.url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104
            settings = Settings(home=tmp_path, infer_url=everywhere, infer_token="t")  # noqa: S106
            assert inference_is_healthy(settings)
        assert not inference_is_healthy(settings)

    def test_over_a_unix_socket(self, tmp_path):
        settings = Settings(home=tmp_path, infer_url=choose_infer_url(tmp_path))
        assert not inference_is_healthy(settings)
        with on_unix_socket(tmp_path / "infer.sock"):
            assert inference_is_healthy(settings)

    def test_of_an_embedded_service_is_found_where_it_listens_by_itself(self, tmp_path):
        settings = Settings(home=tmp_path)
        with on_unix_socket(tmp_path / "infer.sock"):
            assert inference_is_healthy(settings)
        (tmp_path / "infer.sock").unlink()
        assert not inference_is_healthy(settings)


class TestWorker:
    def test_is_healthy_if_seen_lately_on_this_machine(self, settings):
        database = Database(settings.database_url)
        of = {"device": "cpu", "backbones": [], "allows_hub": False}
        register(database, worker_id="elsewhere-1-abc", **of)
        assert not worker_is_healthy(settings)
        register(database, worker_id=f"{socket.gethostname()}-1-abc", **of)
        assert worker_is_healthy(settings)
        leave(database, f"{socket.gethostname()}-1-abc")
        assert not worker_is_healthy(settings)
        database.close()

    def test_is_unhealthy_without_a_database(self, tmp_path):
        url = f"postgresql://me@127.0.0.1:{free_loopback_port()}/x"
        assert not worker_is_healthy(Settings(home=tmp_path, database_url=url))


class TestMain:
    @pytest.mark.process
    def test_returns_the_exit_code(self, tmp_path):
        environment = {
            **os.environ,
            "HIFI_HOME": str(tmp_path),
            "HIFI_PORT": str(free_loopback_port()),
        }
        command = [sys.executable, "-m", "service.health", "gateway"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr == "found no healthy gateway with these settings\n"

    @pytest.mark.parametrize("arguments", [[], ["database"], ["gateway", "worker"]])
    def test_knows_three_processes(self, arguments, capsys):
        assert main(arguments) == 2
        assert "gateway|worker|inference" in capsys.readouterr().err

    def test_a_wrong_setting_is_reported(self, monkeypatch, capsys):
        monkeypatch.setenv("HIFI_PORT", "many")
        assert main(["gateway"]) == 1
        assert "HIFI_PORT" in capsys.readouterr().err
