"""store.queue and store.embedded_broker: tokens come through, whatever becomes of the broker."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
import redis

from store.queue import TASK, TokenPublisher, make_app
from store.settings import Settings
from tests.integration.servers import RedisServer, running

if TYPE_CHECKING:
    from celery import Celery

ROOT = Path(__file__).parents[2]
PUBLISHER = """
import os, sys, time
from store.queue import TokenPublisher, make_app
from store.settings import Settings
publisher = TokenPublisher(make_app(Settings(home=sys.argv[1], broker_url=sys.argv[2])))
"""


def wait_for(is_so: Callable[[], object], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running(RedisServer) as server:
        assert isinstance(server, RedisServer)
        yield server


@pytest.fixture(params=["embedded", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "embedded":
        return Settings(home=tmp_path)
    server: RedisServer = request.getfixturevalue("redis_server")
    redis.Redis.from_url(server.url).flushall()
    return Settings(home=tmp_path, broker_url=server.url)


@pytest.fixture
def app(settings: Settings) -> Celery:
    return make_app(settings)


@pytest.fixture
def publisher(app: Celery) -> Iterator[TokenPublisher]:
    publisher = TokenPublisher(app)
    yield publisher
    publisher.close()


def start_publisher(settings: Settings, then: str) -> subprocess.Popen[bytes]:
    """Run a process that has a publisher, and what it is to do with it."""
    command = [sys.executable, "-c", PUBLISHER + then, settings.home, settings.broker_url]
    return subprocess.Popen(command, cwd=ROOT)


def waiting(app: Celery) -> int:
    """Count the tokens on the broker."""
    with app.connection_for_read() as connection:
        return int(connection.channel().queue_declare("hifi").message_count)


@contextmanager
def worker(settings: Settings, *, name: str = "w") -> Iterator[subprocess.Popen[bytes]]:
    """Run a real worker process, and see that a signal ends it in order."""
    command = [sys.executable, "-m", "tests.store.token_worker", settings.home]
    process = subprocess.Popen([*command, settings.broker_url, name], cwd=ROOT)
    try:
        yield process
        if process.poll() is None:
            process.terminate()
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def taken(settings: Settings) -> list[str]:
    """List which worker took each token."""
    file = settings.home / "taken"
    return file.read_text().split() if file.exists() else []


class TestPublish:
    def test_puts_a_token_on_the_broker_at_once(self, app, publisher):
        publisher.publish()
        wait_for(lambda: waiting(app) == 1)
        begin = time.monotonic()
        publisher.publish(3)
        assert time.monotonic() - begin < 0.01
        wait_for(lambda: waiting(app) == 4, seconds=1)

    def test_closing_sends_what_is_pending(self, app, settings):
        publisher = TokenPublisher(make_app(settings))
        publisher.publish(50)
        publisher.close()
        assert waiting(app) == 50

    def test_is_bounded(self, app, publisher):
        publisher.publish(10**9)
        publisher.close()
        assert waiting(app) <= 1000

    def test_goes_on_in_a_forked_process(self, app, settings):
        then = """
publisher.publish()
time.sleep(0.5)
child = os.fork()
publisher.publish(2 if child else 4)
publisher.close()
if child:
    os.waitpid(child, 0)
"""
        assert start_publisher(settings, then).wait(30) == 0
        assert waiting(app) == 7

    def test_by_several_processes_at_once(self, app, settings):
        then = "publisher.publish(100); publisher.close()"
        processes = [start_publisher(settings, then) for _ in range(3)]
        assert [process.wait(30) for process in processes] == [0, 0, 0]
        assert waiting(app) == 300


class TestOutage:
    @pytest.fixture(params=["embedded", "closed port", "silent server"])
    def away(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
        if request.param == "embedded":
            (tmp_path / "home").write_text("no folder")
            yield Settings(home=tmp_path / "home")
            return
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if request.param == "silent server":
                listener.listen()
            port = listener.getsockname()[1]
            yield Settings(home=tmp_path, broker_url=f"redis://127.0.0.1:{port}/0")

    def test_costs_the_caller_nothing(self, away: Settings):
        publisher = TokenPublisher(make_app(away))
        begin = time.monotonic()
        for _ in range(100):
            publisher.publish()
        assert time.monotonic() - begin < 0.1
        assert not publisher.is_reachable
        assert time.monotonic() - begin < 2.5
        publisher.close()
        assert time.monotonic() - begin < 5

    def test_of_redis_is_over_when_it_is_back(self, tmp_path: Path):
        with running(RedisServer) as server:
            app = make_app(Settings(home=tmp_path, broker_url=server.url))
            publisher = TokenPublisher(app)
            publisher.publish()
            wait_for(lambda: waiting(app) == 1)
            server.stop()
            publisher.publish()
            wait_for(lambda: not publisher.is_reachable)
            server.start()
            wait_for(lambda: publisher.is_reachable)
            publisher.publish()
            wait_for(lambda: waiting(app) >= 1)
            publisher.close()

    def test_one_restart_between_two_tokens_loses_neither(self, tmp_path: Path):
        with running(RedisServer) as server:
            app = make_app(Settings(home=tmp_path, broker_url=server.url))
            publisher = TokenPublisher(app)
            publisher.publish()
            wait_for(lambda: waiting(app) == 1)
            server.stop()
            server.start()  # with nothing in it
            publisher.publish(2)
            publisher.close()
            assert waiting(app) == 2


@pytest.fixture(scope="module", params=["embedded", "redis"])
def busy_settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Give the settings of a worker that takes tokens all the while."""
    url = ""
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        redis.Redis.from_url(url).flushall()
    settings = Settings(home=tmp_path_factory.mktemp("home"), broker_url=url)
    with worker(settings) as process:
        yield settings
        assert process.poll() is None


class TestWorker:
    @pytest.fixture
    def settings(self, busy_settings: Settings) -> Settings:
        return busy_settings

    @pytest.fixture(autouse=True)
    def nothing_taken(self, settings: Settings) -> None:
        (settings.home / "taken").unlink(missing_ok=True)
        (settings.home / "seconds").unlink(missing_ok=True)

    def test_takes_each_token_once_and_leaves_none(self, settings, app, publisher):
        publisher.publish(40)
        wait_for(lambda: len(taken(settings)) == 40)
        assert waiting(app) == 0
        time.sleep(0.2)
        assert len(taken(settings)) == 40

    def test_takes_a_token_soon_after_it_was_published(self, settings, publisher):
        seconds = []
        for count in range(1, 8):
            begin = time.monotonic()
            publisher.publish()
            wait_for(lambda count=count: len(taken(settings)) == count)
            seconds.append(time.monotonic() - begin)
        assert sorted(seconds)[len(seconds) // 2] < (0.5 if settings.is_embedded else 0.1)

    def test_answers_a_ping_while_it_works_and_takes_no_second_token(
        self, settings, app, publisher
    ):
        (settings.home / "seconds").write_text("2")
        publisher.publish()
        wait_for(lambda: taken(settings))
        (settings.home / "seconds").unlink()
        publisher.publish()
        begin = time.monotonic()
        assert app.control.inspect(timeout=5, limit=1).ping() == {"w@test": {"ok": "pong"}}
        assert time.monotonic() - begin < 1
        assert (len(taken(settings)), waiting(app)) == (1, 1)
        wait_for(lambda: len(taken(settings)) == 2)

    def test_takes_json_only(self, settings, app, publisher):
        with app.connection_for_write() as connection:
            app.amqp.Producer(connection).publish(
                ((), {}, {}),
                routing_key="hifi",
                serializer="pickle",
                headers={"task": TASK, "id": "1", "lang": "py", "root_id": "1"},
            )
        publisher.publish()
        wait_for(lambda: taken(settings))
        time.sleep(0.2)
        assert len(taken(settings)) == 1

    def test_is_found_by_celerys_command(self, settings):
        environment = {
            **os.environ,
            "HIFI_HOME": str(settings.home),
            "HIFI_BROKER_URL": settings.broker_url,
        }
        command = [sys.executable, "-m", "celery", "-A", "store.queue", "inspect", "ping", "-j"]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, check=True, capture_output=True, timeout=30
        )
        assert json.loads(done.stdout.splitlines()[0]) == {"w@test": {"ok": "pong"}}

    def test_shares_tokens_with_another_and_leaves_them_when_killed(self, settings, publisher):
        (settings.home / "seconds").write_text("0.1")
        with worker(settings, name="other") as other:
            for count in range(1, 400):
                publisher.publish()
                wait_for(lambda count=count: len(taken(settings)) >= count)
                if {"w", "other"} <= set(taken(settings)):
                    break
            (settings.home / "taken").unlink()
            publisher.publish(10)
            wait_for(lambda: "other" in taken(settings))
            other.kill()
            other.wait()
            # What it had in hand may be lost: the reconciler replaces it.
            wait_for(lambda: len(taken(settings)) >= 9)


class TestRedisServer:
    def test_goes_on_after_redis_was_flushed_and_restarted(self, tmp_path: Path):
        with running(RedisServer) as server:
            settings = Settings(home=tmp_path, broker_url=server.url)
            publisher = TokenPublisher(make_app(settings))
            with worker(settings):
                publisher.publish()
                wait_for(lambda: len(taken(settings)) == 1)
                redis.Redis.from_url(server.url).flushall()
                publisher.publish()
                wait_for(lambda: len(taken(settings)) == 2)
                server.stop(signal.SIGKILL)
                time.sleep(0.5)
                server.start()
                publisher.publish()
                wait_for(lambda: len(taken(settings)) >= 3)
            publisher.close()


class TestEmbeddedFile:
    """The file of the embedded broker, mistreated under a worker that must go on."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(home=tmp_path)

    @pytest.fixture
    def token(self, settings, app, publisher) -> str:
        """Give the payload of a token as it lies in the file."""
        publisher.publish()
        wait_for(lambda: waiting(app) == 1)
        with sqlite3.connect(settings.home / "broker.db") as file:
            (payload,) = file.execute("SELECT payload FROM messages").fetchone()
            file.execute("DELETE FROM messages")
        return str(payload)

    def test_a_broken_message_is_dropped(self, settings, app, publisher, token):
        broken = [
            None,
            "",
            "{",
            "null",
            "[]",
            "{}",
            b"\xff\x00",
            token[:-1],
            token[: len(token) // 2],
        ]
        changed = json.loads(token)
        changed["headers"]["id"] = {}  # ends a worker that believes it
        rows = [(payload, 0) for payload in (*broken, json.dumps(changed), token)]
        rows += [(payload, crc32(token.encode())) for payload in broken]
        with worker(settings) as process:
            publisher.publish()
            wait_for(lambda: len(taken(settings)) == 1)
            with sqlite3.connect(settings.home / "broker.db") as file:
                file.executemany(
                    "INSERT INTO messages (queue, payload, checksum) VALUES ('hifi', ?, ?)", rows
                )
            publisher.publish()
            wait_for(lambda: len(taken(settings)) == 2)
            assert process.poll() is None
        assert waiting(app) == 0

    def test_a_broken_file_is_begun_anew(self, settings, app, publisher):
        path = settings.home / "broker.db"
        with worker(settings) as process:
            publisher.publish()
            wait_for(lambda: taken(settings))
            for content in (b"", b"no database" * 1000, None):
                if content is None:
                    path.unlink()
                else:
                    path.write_bytes(content)
                before = len(taken(settings))
                for _ in range(100):  # tokens are lost until both have noticed
                    publisher.publish()
                    time.sleep(0.1)
                    if len(taken(settings)) > before:
                        break
                assert len(taken(settings)) > before
            assert process.poll() is None
            assert app.control.inspect(timeout=5, limit=1).ping()

    def test_a_broken_file_does_not_hinder_the_start(self, settings, publisher):
        (settings.home / "broker.db").write_bytes(b"no database" * 1000)
        publisher.publish()
        with worker(settings):
            wait_for(lambda: taken(settings))

    def test_publishers_killed_at_any_moment_leave_whole_messages(self, settings, app):
        for moment in (0.0, 0.01, 0.03, 0.1):
            process = start_publisher(settings, "while True: publisher.publish()")
            before = waiting(app)
            wait_for(lambda before=before: waiting(app) > before)
            time.sleep(moment)
            process.kill()
            process.wait()
        with sqlite3.connect(settings.home / "broker.db") as file:
            rows = file.execute("SELECT payload, checksum FROM messages").fetchall()
        assert rows
        assert all(crc32(payload.encode()) == checksum for payload, checksum in rows)

    def test_nothing_piles_up(self, settings, app, publisher):
        with worker(settings):
            for _ in range(3):
                app.control.inspect(timeout=2, limit=1).ping()
            publisher.publish(20)
            wait_for(lambda: len(taken(settings)) == 20)
            wait_for(lambda: waiting(app) == 0)
            with sqlite3.connect(settings.home / "broker.db") as file:
                (messages,) = file.execute("SELECT count(*) FROM messages").fetchone()
        assert messages == 0
        with sqlite3.connect(settings.home / "broker.db") as file:
            bound = {queue for (queue,) in file.execute("SELECT queue FROM bindings")}
        assert not any("pidbox" in queue for queue in bound - {"w@test.celery.pidbox"})


class TestSecrets:
    def test_tells_no_password(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        secret = secrets.token_hex(8)
        settings = Settings(home=tmp_path, broker_url=f"redis://:{secret}@127.0.0.1:9/0")
        publisher = TokenPublisher(make_app(settings))
        with caplog.at_level(logging.INFO):
            publisher.publish()
            publisher.close()
        assert secret not in caplog.text
        assert secret not in repr(settings)
