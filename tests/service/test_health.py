"""service.health: a container is healthy when its process does its work."""

from __future__ import annotations

import fcntl
import http.server
import os
import socketserver
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest

from service.embedded.home import choose_infer_url
from service.embedded.listening import free_loopback_port
from service.health import gateway_is_healthy, inference_is_healthy, main, worker_is_healthy
from store.database.connection import Database
from store.jobs.workers import find_live_workers, leave, register
from store.machine import LOCK, machine_name
from store.settings import Settings
from tests.root import ROOT
from tests.service.gateways import settings_for
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


@contextmanager
def working(settings, database, *, name="1-abc", machine=None, is_live=True):
    """Stand in for a worker of these settings: its locked folder, and its row if it is live."""
    worker_id = f"{machine or machine_name()}-{name}"
    folder = settings.work / worker_id
    folder.mkdir(parents=True)
    if is_live:
        register(database, worker_id=worker_id, device="cpu", backbones=[], allows_hub=False)
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield worker_id


class TestWorker:
    @pytest.fixture
    def database(self, settings):
        with closing(Database(settings.database_url)) as database:
            yield database

    def test_is_healthy_while_it_is_seen(self, settings, database):
        with working(settings, database) as worker_id:
            assert worker_is_healthy(settings)
            leave(database, worker_id)
            assert not worker_is_healthy(settings)

    def test_is_not_healthy_because_another_is(self, settings, database, tmp_path):
        with working(settings_for(tmp_path / "other", settings.database_url), database):
            assert not worker_is_healthy(settings)  # it has not begun
            with working(settings, database, name="2-def", is_live=False):
                assert not worker_is_healthy(settings)  # it hangs

    def test_is_unhealthy_if_one_of_two_in_its_folder_is(self, settings, database):
        with working(settings, database, name="1-abc") as first:
            with working(settings, database, name="2-def") as second:
                assert worker_is_healthy(settings)
                leave(database, first)
                assert not worker_is_healthy(settings)
                assert second in find_live_workers(database)
            assert not worker_is_healthy(settings)

    def test_of_another_machine_does_not_count(self, settings, database):
        with working(settings, database, machine="elsewhere"):
            assert not worker_is_healthy(settings)
            with (
                working(settings, database),
                working(settings, database, machine="e", is_live=False),
            ):
                assert worker_is_healthy(settings)

    def test_that_was_killed_is_not_waited_for(self, settings, database):
        with working(settings, database, name="1-abc") as killed:
            pass
        leave(database, killed)
        assert not worker_is_healthy(settings)
        with working(settings, database, name="2-def"):
            assert worker_is_healthy(settings)  # although the killed one's folder is still there

    def test_is_unhealthy_without_a_database(self, settings, database):
        url = f"postgresql://me@127.0.0.1:{free_loopback_port()}/x"
        with working(settings, database):
            assert not worker_is_healthy(settings_for(settings.home, url))


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
