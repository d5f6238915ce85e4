"""Workers that take tokens, publishers that send them, and counts of tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from store.queue import TokenPublisher, make_app
from tests.root import ROOT
from tests.waiting import patience

if TYPE_CHECKING:
    from celery import Celery

    from store.settings import Settings

PUBLISHER = """
import os, sys, time
import store.queue
from store.queue import TokenPublisher, make_app
from store.settings import Settings
app = make_app(Settings(home=sys.argv[1], broker_url=sys.argv[2]))
app.backend  # is imported before there are threads
store.queue._FLUSH_SECONDS = 60
publisher = TokenPublisher(app)
assert publisher.is_reachable
"""


@pytest.fixture
def app(settings: Settings) -> Celery:
    return make_app(settings)


@pytest.fixture
def publisher(app: Celery) -> Iterator[TokenPublisher]:
    publisher = TokenPublisher(app)
    yield publisher
    publisher.close()


def start_publisher(settings: Settings, then: str) -> subprocess.Popen[bytes]:
    """Run a process with a publisher and the code that uses it."""
    command = [sys.executable, "-c", PUBLISHER + then, settings.home, settings.broker_url]
    return subprocess.Popen(command, cwd=ROOT)


def waiting(app: Celery) -> int:
    """Count the tokens on the broker."""
    with app.connection_for_read() as connection:
        return int(connection.channel().queue_declare("hifi").message_count)


@contextmanager
def worker(settings: Settings, *, name: str = "w") -> Iterator[subprocess.Popen[bytes]]:
    """Run a real worker process; assert that a signal stops it cleanly."""
    command = [sys.executable, "-m", "tests.store.token_worker", settings.home]
    process = subprocess.Popen([*command, settings.broker_url, name], cwd=ROOT)
    try:
        yield process
        if process.poll() is None:
            process.terminate()
            assert process.wait(patience(20)) == 0
    finally:
        process.kill()
        process.wait()


def taken(settings: Settings) -> list[str]:
    """List which worker took each token."""
    file = settings.home / "taken"
    return file.read_text().split() if file.exists() else []
