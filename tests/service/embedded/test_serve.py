"""service.embedded.serve: the parts share their settings, and readiness is announced once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from service.embedded import serve as embedded
from service.embedded import supervisor
from service.embedded.home import HomeError, own_home
from service.embedded.serve import serve_embedded
from service.embedded.supervisor import CrashLoopError, Part
from store.database.connection import Database
from store.database.schema import upgrade
from store.jobs.workers import register
from store.settings import Settings
from tests.root import ROOT
from tests.waiting import patience

# Signs on as a worker does, once the test lets it.
WORKER = """
import os, sys, time
from store.database.connection import Database
from store.settings import read_settings
from store.jobs.workers import register
while not os.path.exists(sys.argv[1]): time.sleep(0.02)
database = Database(read_settings().database_url)
register(database, worker_id=f"new-{os.getpid()}", device="cpu", backbones=[], allows_hub=False)
time.sleep(600)
"""
# Answers as the inference process does when it is asked whether it is alive.
INFERENCE = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def address_string(self): return ""
path = os.environ["HIFI_INFER_URL"].removeprefix("unix://")
socketserver.UnixStreamServer(path, Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Return settings that are also in the environment, where the parts read them."""
    for name in list(os.environ):
        if name.startswith("HIFI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HIFI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HIFI_PORT", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Settings()


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Replace worker and inference by light parts; return the file that lets them start."""
    go = tmp_path / "go"
    real = embedded._parts

    def parts(listener):
        gateway = next(part for part in real(listener) if part.name == "gateway")
        python = (sys.executable, "-c")
        return (
            gateway,
            Part(name="worker", command=(*python, WORKER, str(go))),
            Part(name="inference", command=(*python, INFERENCE), rank=1),
        )

    monkeypatch.setattr(embedded, "_parts", parts)
    return go


def stop(url=None):
    os.kill(os.getpid(), signal.SIGTERM)
    return url


class TestServe:
    @pytest.mark.process
    def test_is_ready_with_a_new_worker_and_stops_at_a_signal(self, settings, go):
        settings.home.mkdir(mode=0o700)
        upgrade(settings.database_url)
        database = Database(settings.database_url)  # of a service before this one, just killed
        register(database, worker_id="old", device="cpu", backbones=[], allows_hub=False)
        told = []

        def announce(url):
            assert go.exists(), "told before there was a worker"
            ready = httpx2.get(f"{url}/readyz", timeout=patience(30), trust_env=False)
            told.append((url, ready.json()["degraded"]))
            stop()

        threading.Timer(3.0, go.touch).start()
        assert serve_embedded(settings, announce=announce) == signal.SIGTERM
        ((url, degraded),) = told
        assert degraded == []
        assert not url.endswith(":0")
        database.close()

    def test_a_second_one_in_the_folder_is_refused_before_anything_is_touched(self, settings):
        with own_home(settings.home), pytest.raises(HomeError, match="already"):
            serve_embedded(settings, announce=stop)
        assert [path.name for path in settings.home.iterdir()] == ["serve.lock"]

    @pytest.mark.process
    def test_a_failing_part_stops_it_with_the_reason(self, settings, monkeypatch):
        monkeypatch.setattr(supervisor, "_FIRST_WAIT_SECONDS", 0.01)
        broken = Part(name="inference", command=(sys.executable, "-c", "raise SystemExit(9)"))
        monkeypatch.setattr(embedded, "_parts", lambda _: (broken,))
        with pytest.raises(CrashLoopError, match=r"inference .* \(exit code 9\)"):
            serve_embedded(settings, announce=stop)
        with own_home(settings.home) as is_left_over:
            assert not is_left_over

    @pytest.mark.process
    def test_logs_what_it_waits_for(self, settings, go, monkeypatch):
        monkeypatch.setattr(embedded, "_WAITING_SECONDS", 0.1)
        told = []

        def info(event, **of):
            told.append((event, of))
            stop()

        monkeypatch.setattr(embedded._log, "info", info)
        assert serve_embedded(settings, announce=pytest.fail) == signal.SIGTERM
        assert not go.exists()
        event, of = told[0]
        assert of.pop("url").startswith("http://127.0.0.1:")
        assert (event, of) == ("waiting", {"missing": ["worker"], "models": str(settings.models)})


class TestEnvironment:
    def test_the_parts_share_the_folder(self, settings):
        environment = embedded._environment(settings, {"PATH": "/bin"})
        assert environment == {
            "PATH": "/bin",
            "HIFI_HOME": str(settings.home),
            "HIFI_INFER_URL": f"unix://{settings.home}/infer.sock",
        }

    def test_settings_of_the_operator_are_kept(self, settings, monkeypatch):
        monkeypatch.setenv("HIFI_INFER_URL", "http://127.0.0.1:7001")
        environment = embedded._environment(Settings(), dict(os.environ))
        assert environment["HIFI_INFER_URL"] == "http://127.0.0.1:7001"
        assert settings.home == Path(environment["HIFI_HOME"])


class TestParts:
    def test_the_worker_stops_first_and_has_time_for_its_checkpoint(self):
        parts = {part.name: part for part in embedded._parts(7)}
        assert parts["worker"].rank < parts["gateway"].rank == parts["inference"].rank
        assert parts["worker"].grace_seconds >= 30
        assert parts["gateway"].descriptors == (7,)

    def test_are_commands_that_exist(self):
        from hifi.cli import EXTRA_COMMANDS  # noqa: PLC0415

        for part in embedded._parts(7):
            assert part.command[:3] == (sys.executable, "-m", "hifi.cli")
            assert part.command[3] in EXTRA_COMMANDS
