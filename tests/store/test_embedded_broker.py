"""store.embedded_broker: its file, mistreated under a worker that must go on."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import pytest

from store.embedded_broker import _File
from store.settings import Settings
from tests.store.tokens import app, publisher, start_publisher, taken, waiting, worker
from tests.waiting import eventually, patience

pytestmark = pytest.mark.process

__all__ = ["app", "publisher"]


class TestEmbeddedFile:
    """The file of the embedded broker, damaged while a worker must keep running."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(home=tmp_path)

    @pytest.fixture
    def token(self, settings, app, publisher) -> str:
        """Return the payload of a token as stored in the file."""
        publisher.publish()
        eventually(lambda: waiting(app) == 1)
        with sqlite3.connect(settings.home / "broker.db") as file:
            (payload,) = file.execute("SELECT payload FROM messages").fetchone()
            file.execute("DELETE FROM messages")
        return str(payload)

    def test_a_new_file_may_be_opened_by_several_at_once(self, tmp_path: Path):
        """Without a wait for each other, one of six files could not be opened by all."""
        together = threading.Barrier(4)

        def open_file(path: Path) -> list[tuple[int]]:
            file = _File(path)
            together.wait()
            found = file.execute("SELECT count(*) FROM messages")
            file.close()
            return found

        with ThreadPoolExecutor(4) as pool:
            for number in range(50):
                path = tmp_path / f"{number}.db"
                opened = [pool.submit(open_file, path) for _ in range(4)]
                assert [each.result() for each in opened] == [[(0,)]] * 4

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
            eventually(lambda: len(taken(settings)) == 1)
            with sqlite3.connect(settings.home / "broker.db") as file:
                file.executemany(
                    "INSERT INTO messages (queue, payload, checksum) VALUES ('hifi', ?, ?)", rows
                )
            publisher.publish()
            eventually(lambda: len(taken(settings)) == 2)
            assert process.poll() is None
        assert waiting(app) == 0

    def test_a_broken_file_is_recreated(self, settings, app, publisher):
        path = settings.home / "broker.db"
        with worker(settings) as process:
            publisher.publish()
            eventually(lambda: taken(settings))
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
            assert app.control.inspect(timeout=patience(5), limit=1).ping()

    def test_a_broken_file_does_not_hinder_the_start(self, settings, publisher):
        (settings.home / "broker.db").write_bytes(b"no database" * 1000)
        publisher.publish()
        with worker(settings):
            eventually(lambda: taken(settings))

    def test_publishers_killed_at_any_moment_leave_whole_messages(self, settings, app):
        for moment in (0.0, 0.01, 0.03, 0.1):
            process = start_publisher(settings, "while True: publisher.publish()")
            before = waiting(app)
            eventually(lambda before=before: waiting(app) > before)
            time.sleep(moment)
            process.kill()
            process.wait()
        with sqlite3.connect(settings.home / "broker.db") as file:
            rows = file.execute("SELECT payload, checksum FROM messages").fetchall()
        assert rows
        assert all(crc32(payload.encode()) == checksum for payload, checksum in rows)

    def test_the_file_does_not_grow(self, settings, app, publisher):
        with worker(settings):
            for _ in range(3):
                app.control.inspect(timeout=patience(2), limit=1).ping()
            publisher.publish(20)
            eventually(lambda: len(taken(settings)) == 20)
            eventually(lambda: waiting(app) == 0)
            with sqlite3.connect(settings.home / "broker.db") as file:
                (messages,) = file.execute("SELECT count(*) FROM messages").fetchone()
        assert messages == 0
        with sqlite3.connect(settings.home / "broker.db") as file:
            bound = {queue for (queue,) in file.execute("SELECT queue FROM bindings")}
        assert not any("pidbox" in queue for queue in bound - {"w@test.celery.pidbox"})
