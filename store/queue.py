"""The queue: each token means "run one job"; the tables decide which job."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery, signals
from celery.platforms import SecurityWarning
from kombu.exceptions import KombuError

from store.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController
    from kombu.connection import Connection

    from store.settings import Settings

TASK = "hifi.run_one"
_QUEUE = "hifi"
_CONNECT_SECONDS = 1.0
_POLL_SECONDS = 0.05  # of the embedded broker
_MAX_PENDING = 1000  # a worker with one token continues as long as there are jobs
_FLUSH_SECONDS = 2.0
# Publishing a token takes half a millisecond from a process that answers requests, and only as many
# are urgent as there are idle workers: a few at once, then at most 100 a second.
_BURST = 16
_PACE_SECONDS = 1 / 100
_log = structlog.get_logger(__name__)


def __getattr__(name: str) -> object:
    """Let ``celery -A store.queue inspect ping`` find the app of this environment."""
    if name == "app":
        return make_app(read_settings())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_app(settings: Settings) -> Celery:
    """Create the Celery app for publishers and consumers of tokens."""
    app = Celery("hifi", set_as_current=False)
    app.conf.update(
        task_default_queue=_QUEUE,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_publish_retry=False,
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Only RabbitMQ has quorum queues.
        worker_detect_quorum_queues=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=_CONNECT_SECONDS,
        **_embedded(settings) if settings.is_embedded else _redis(settings),
    )
    return app


def _embedded(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": "embedded://",
        "broker_transport": "store.embedded_broker:Transport",
        "broker_transport_options": {
            "path": str(settings.home / "broker.db"),
            "polling_interval": _POLL_SECONDS,
        },
    }


def _redis(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.broker_url,
        "broker_transport_options": {
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_keepalive": True,
        },
    }


def consume(
    app: Celery, run_one: Callable[[], None], *, name: str, on_stop: Callable[[], None]
) -> None:
    """Consume tokens, one at a time in a separate thread, until a signal ends this process.

    Celery's messages between workers about their health are off: the tables have it.

    Args:
        app: from :func:`make_app`.
        run_one: called for each token.
        name: the worker's name in ``celery inspect``.
        on_stop: called on the signal; the current token is then finished.
    """

    def stop(**_: object) -> None:
        on_stop()

    def keep_logging(**_: object) -> None:
        """Replace Celery's own set-up of the logs."""

    signals.worker_shutting_down.connect(stop)
    signals.setup_logging.connect(keep_logging)

    def take_token() -> None:
        run_one()

    app.task(take_token, name=TASK)
    # Celery advises root to use an option that `hifi worker` does not have.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker: WorkController = app.Worker(
        hostname=name, without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True
    )
    worker.start()


class TokenPublisher:
    """Publishes tokens from a separate thread, so that no caller waits for the broker.

    Tokens that the broker does not accept are dropped: the reconciler replaces them.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None
        self._is_away = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._pending = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def _begin_in_fork(self) -> None:
        if self._process != os.getpid():  # a forked process does not inherit the thread
            self._connection = None
            self._begin()

    def publish(self, count: int = 1) -> None:
        """Schedule tokens for publishing; call it after the commit. It neither blocks nor fails."""
        self._begin_in_fork()
        with self._changed:
            self._pending = min(self._pending + count, _MAX_PENDING)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)
                self._thread.start()
            self._changed.notify()

    @property
    def is_reachable(self) -> bool:
        """Return whether the broker answers; every call checks it, for about a second at most."""
        connection = self._connect()
        try:
            connection.ensure_connection(max_retries=0)
        except _errors_of(connection):
            return False
        finally:
            connection.release()
        return True

    def close(self) -> None:
        """Publish pending tokens, for a short time at most, and end the thread."""
        self._begin_in_fork()
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._is_closed:
                    self._changed.wait()
                count = self._pending if self._is_closed else min(self._pending, _BURST)
                self._pending -= count
            if not count:
                break
            self._send(count)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, timeout=count * _PACE_SECONDS)
        if self._connection is not None:
            self._connection.release()

    def _send(self, count: int) -> None:
        """Send tokens; retry once, because an existing connection may be dead."""
        is_old = self._connection is not None
        connection = self._connection or self._connect()
        sent = 0
        try:
            connection.ensure_connection(max_retries=0)
            producer = self._app.amqp.Producer(connection)
            for sent in range(count):  # noqa: B007 - counts the tokens sent before a failure
                self._app.send_task(TASK, producer=producer, retry=False, ignore_result=True)
        except _errors_of(connection) as error:
            connection.release()
            self._connection = None
            if is_old:
                self._send(count - sent)
            else:
                self._note_outage(error, lost=count - sent)
            return
        self._connection = connection
        if self._is_away:
            self._is_away = False
            _log.info("the broker is reachable again")

    def _note_outage(self, error: Exception, *, lost: int) -> None:
        if not self._is_away:
            _log.warning("the broker is unreachable; jobs wait", tokens=lost, reason=str(error))
        self._is_away = True

    def _connect(self) -> Connection:
        connection: Connection = self._app.connection_for_write(
            transport_options={"socket_timeout": _CONNECT_SECONDS, "max_retries": 0}
        )
        return connection


def _errors_of(connection: Connection) -> tuple[type[Exception], ...]:
    return (KombuError, *connection.connection_errors, *connection.channel_errors)
