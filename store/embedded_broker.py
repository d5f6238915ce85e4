"""A kombu transport with a single SQLite file as the broker, for a server that runs nothing else.

kombu's own SQLAlchemy transport keeps every delivered message, ends the worker at a broken message,
and cannot broadcast, which remote control needs; its filesystem transport too ends the worker at a
half-written message. This one implements only what Celery requires of a virtual transport.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from pathlib import Path
from queue import Empty
from threading import Lock
from typing import Any
from weakref import WeakSet
from zlib import crc32

from kombu.transport import virtual

_BUSY_SECONDS = 5.0
_PAUSE_SECONDS = 0.005
_BROADCAST_SECONDS = 60.0  # a broadcast unread for this long was sent to a dead worker
_TABLES = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, payload, checksum, sent_at REAL
);
CREATE INDEX IF NOT EXISTS messages_by_queue ON messages (queue, id);
CREATE TABLE IF NOT EXISTS bindings (
    exchange TEXT, routing_key TEXT, pattern TEXT, queue TEXT,
    PRIMARY KEY (exchange, routing_key, pattern, queue)
);
"""
_log = logging.getLogger(__name__)


class _File:
    """A connection to the broker's file, opened on first use.

    A broken file is replaced by an empty one: it held only tokens. Processes that had the old file
    open get a connection error, after which they declare their queues again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._opened: tuple[sqlite3.Connection, int] | None = None  # and the file's inode
        _FILES.add(self)

    def execute(self, statement: str, *values: object) -> list[Any]:
        """Run one statement, which is one transaction.

        Raises:
            sqlite3.Error: the file is busy, full or broken.
            ConnectionResetError: the file has been replaced.
        """
        with self._lock:
            try:
                return self._connection().execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                if _is_broken(error):
                    self._replace_file(error)
                raise

    def close(self) -> None:
        """Close the connection; the next statement opens a new one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[0].close()
        self._opened = None

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            try:
                connection = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                self._replace_file(error)
                connection = self._open()
            self._opened = connection, self._path.stat().st_ino
        connection, inode = self._opened
        found = self._path.stat() if self._path.exists() else None
        if found is not None and not found.st_size:
            self._replace_file("the file was emptied")
        if found is None or not found.st_size or found.st_ino != inode:
            self._close()
            raise ConnectionResetError(f"{self._path} has been replaced")
        return connection

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost tokens
            connection.executescript(_TABLES)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _replace_file(self, reason: object) -> None:
        _log.warning("%s is broken and is replaced by an empty file: %s", self._path, reason)
        self._close()
        for suffix in ("-wal", "-shm", ""):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to its journal; another process may do so at the same time.

    SQLite does not wait for the other one's lock then, whatever the connection's timeout is.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # the module's own errors have none
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _close_all() -> None:
    for file in list(_FILES):
        file.close()


# A forked process must not use SQLite's connections of its parent, not even close them.
_FILES: WeakSet[_File] = WeakSet()
os.register_at_fork(before=_close_all)


class Channel(virtual.Channel):
    """Queues and bindings in the file.

    A damaged message is dropped, because it could end Celery's worker.
    """

    supports_fanout = True

    def __init__(self, connection: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kombu's
        super().__init__(connection, **kwargs)  # type: ignore[no-untyped-call]
        self._file = _File(Path(connection.client.transport_options["path"]))
        self._file.execute("SELECT 1")  # fail here if the broker is unreachable

    def close(self) -> None:
        """Close the channel; unacknowledged messages return to their queues."""
        super().close()  # type: ignore[no-untyped-call]
        self._file.close()

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return an exchange's bindings, which all processes share."""
        return self._file.execute(
            "SELECT routing_key, pattern, queue FROM bindings WHERE exchange = ?", exchange
        )

    def _queue_bind(
        self, exchange: str, routing_key: str | None, pattern: str | None, queue: str
    ) -> None:
        values = (exchange, routing_key or "", pattern or "", queue)
        self._file.execute("INSERT OR IGNORE INTO bindings VALUES (?, ?, ?, ?)", *values)

    def _put(self, queue: str, message: dict[str, Any], **_: object) -> None:
        payload = json.dumps(message)
        self._file.execute(
            "INSERT INTO messages (queue, payload, checksum, sent_at) VALUES (?, ?, ?, ?)",
            *(queue, payload, crc32(payload.encode()), time.time()),
        )

    def _put_fanout(
        self, exchange: str, message: dict[str, Any], _routing_key: str, **_: object
    ) -> None:
        queues = [queue for _, _, queue in self.get_table(exchange)]
        for queue in queues:
            self._file.execute(
                "DELETE FROM messages WHERE queue = ? AND sent_at < ?",
                *(queue, time.time() - _BROADCAST_SECONDS),
            )
            self._put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ARG002
        while taken := self._file.execute(
            "DELETE FROM messages WHERE id = (SELECT min(id) FROM messages WHERE queue = ?)"
            " RETURNING CAST(payload AS BLOB), checksum",
            queue,
        ):
            payload, checksum = taken[0]
            if payload and crc32(payload) == checksum:
                message: dict[str, Any] = json.loads(payload)
                return message
            _log.warning("dropped a damaged message")
        raise Empty

    def _size(self, queue: str) -> int:
        count = self._file.execute("SELECT count(*) FROM messages WHERE queue = ?", queue)
        return int(count[0][0])

    def _purge(self, queue: str) -> int:
        return len(self._file.execute("DELETE FROM messages WHERE queue = ? RETURNING id", queue))

    def _delete(self, queue: str, *_: object, **__: object) -> None:
        self._purge(queue)
        self._file.execute("DELETE FROM bindings WHERE queue = ?", queue)


class Transport(virtual.Transport):
    """The transport of an app whose ``broker_transport_options`` have the file's ``path``."""

    Channel = Channel
    can_parse_url = True  # there is nothing to parse in ``embedded://``
    driver_type = "sqlite"
    driver_name = "sqlite3"
    # kombu's attribute has the type of its default
    connection_errors = (  # type: ignore[assignment]
        *virtual.Transport.connection_errors,
        sqlite3.Error,
        OSError,
    )
    recoverable_connection_errors = connection_errors
    implements = virtual.Transport.implements.extend(
        exchange_type=frozenset({"direct", "topic", "fanout"})
    )

    def driver_version(self) -> str:
        """Return SQLite's version."""
        return sqlite3.sqlite_version
