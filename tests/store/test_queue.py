"""store.queue: tokens are delivered through outages of the broker."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from store.queue import TASK, TokenPublisher, make_app
from store.settings import Settings
from tests.integration.servers import RedisServer, Server, running
from tests.store.tokens import (
    ROOT,
    app,
    publisher,
    start_publisher,
    taken,
    waiting,
    worker,
)
from tests.waiting import eventually, patience, within

if TYPE_CHECKING:
    from celery import Celery

pytestmark = pytest.mark.process

__all__ = ["app", "publisher"]


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


class TestPublish:
    def test_puts_a_token_on_the_broker_at_once(self, app, publisher):
        publisher.publish()
        eventually(lambda: waiting(app) == 1)
        with within(0.1):
            publisher.publish(3)
        eventually(lambda: waiting(app) == 4, seconds=1)

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
from tests.store.tokens import waiting
from tests.waiting import eventually
publisher.publish()
eventually(lambda: waiting(app) == 1)
child = os.fork()
publisher.publish(2 if child else 4)
publisher.close()
if child:
    os.waitpid(child, 0)
"""
        assert start_publisher(settings, then).wait(patience(30)) == 0
        assert waiting(app) == 7

    def test_by_several_processes_at_once(self, app, settings):
        then = "publisher.publish(100); publisher.close()"
        processes = [start_publisher(settings, then) for _ in range(3)]
        assert [process.wait(patience(30)) for process in processes] == [0, 0, 0]
        assert waiting(app) == 300


@contextmanager
def one_published(home: Path) -> Iterator[tuple[Server, Celery, TokenPublisher]]:
    """Run a Redis that a test may stop, with one token in it."""
    with running(RedisServer) as server:
        app = make_app(Settings(home=home, broker_url=server.url))
        publisher = TokenPublisher(app)
        publisher.publish()
        eventually(lambda: waiting(app) == 1)
        yield server, app, publisher
        publisher.close()


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

    def test_does_not_block_the_caller(self, away: Settings):
        publisher = TokenPublisher(make_app(away))
        with within(5):
            with within(2.5):
                with within(0.1):
                    for _ in range(100):
                        publisher.publish()
                assert not publisher.is_reachable
            publisher.close()

    def test_of_redis_ends_when_it_is_back(self, tmp_path: Path):
        with one_published(tmp_path) as (server, app, publisher):
            server.stop()
            publisher.publish()
            eventually(lambda: not publisher.is_reachable)
            server.start()
            eventually(lambda: publisher.is_reachable)
            publisher.publish()
            eventually(lambda: waiting(app) >= 1)

    def test_one_restart_between_two_tokens_loses_neither(self, tmp_path: Path):
        with one_published(tmp_path) as (server, app, publisher):
            server.stop()
            server.start()  # with nothing in it
            publisher.publish(2)
            publisher.close()
            assert waiting(app) == 2


@pytest.fixture(scope="module", params=["embedded", "redis"])
def busy_settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Yield the settings of a worker that takes tokens throughout the test."""
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
        eventually(lambda: len(taken(settings)) == 40)
        assert waiting(app) == 0
        time.sleep(0.2)
        assert len(taken(settings)) == 40

    def test_takes_a_token_soon_after_it_was_published(self, settings, publisher):
        seconds = []
        for count in range(1, 8):
            begin = time.monotonic()
            publisher.publish()
            eventually(lambda count=count: len(taken(settings)) == count)
            seconds.append(time.monotonic() - begin)
        limit = 0.5 if settings.is_embedded else 0.1
        assert sorted(seconds)[len(seconds) // 2] < patience(limit)

    def test_answers_a_ping_while_it_works_and_takes_no_second_token(
        self, settings, app, publisher
    ):
        (settings.home / "seconds").write_text("2")
        publisher.publish()
        eventually(lambda: taken(settings))
        (settings.home / "seconds").unlink()
        publisher.publish()
        with within(1):
            answers = app.control.inspect(timeout=patience(5), limit=1).ping()
        assert answers == {"w@test": {"ok": "pong"}}
        assert (len(taken(settings)), waiting(app)) == (1, 1)
        eventually(lambda: len(taken(settings)) == 2)

    def test_takes_json_only(self, settings, app, publisher):
        with app.connection_for_write() as connection:
            app.amqp.Producer(connection).publish(
                ((), {}, {}),
                routing_key="hifi",
                serializer="pickle",
                headers={"task": TASK, "id": "1", "lang": "py", "root_id": "1"},
            )
        publisher.publish()
        eventually(lambda: taken(settings))
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
            command,
            env=environment,
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=patience(30),
        )
        assert json.loads(done.stdout.splitlines()[0]) == {"w@test": {"ok": "pong"}}

    def test_shares_tokens_with_another_and_leaves_them_when_killed(self, settings, publisher):
        (settings.home / "seconds").write_text("0.1")
        with worker(settings, name="other") as other:
            for count in range(1, 400):
                publisher.publish()
                eventually(lambda count=count: len(taken(settings)) >= count)
                if {"w", "other"} <= set(taken(settings)):
                    break
            (settings.home / "taken").unlink()
            publisher.publish(10)
            eventually(lambda: "other" in taken(settings))
            other.kill()
            other.wait()
            # What it had in hand may be lost: the reconciler replaces it.
            eventually(lambda: len(taken(settings)) >= 9)


class TestRedisServer:
    def test_goes_on_after_redis_was_flushed_and_restarted(self, tmp_path: Path):
        with running(RedisServer) as server:
            settings = Settings(home=tmp_path, broker_url=server.url)
            publisher = TokenPublisher(make_app(settings))
            with worker(settings):
                publisher.publish()
                eventually(lambda: len(taken(settings)) == 1)
                redis.Redis.from_url(server.url).flushall()
                publisher.publish()
                eventually(lambda: len(taken(settings)) == 2)
                server.stop(signal.SIGKILL)
                time.sleep(0.5)
                server.start()
                publisher.publish()
                eventually(lambda: len(taken(settings)) >= 3)
            publisher.close()


class TestSecrets:
    def test_shows_no_password(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        secret = secrets.token_hex(8)
        settings = Settings(home=tmp_path, broker_url=f"redis://:{secret}@127.0.0.1:9/0")
        publisher = TokenPublisher(make_app(settings))
        with caplog.at_level(logging.INFO):
            publisher.publish()
            publisher.close()
        assert secret not in caplog.text
        assert secret not in repr(settings)
