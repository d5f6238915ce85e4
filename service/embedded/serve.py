"""Run the embedded service: gateway, one worker and inference on one machine, with one folder."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import httpx2
import sqlalchemy as sa
import structlog

from service.embedded.home import choose_infer_url, own_home
from service.embedded.listening import listen, url_of
from service.embedded.supervisor import Part, Supervisor
from store.database.connection import OUTAGES, Database
from store.database.outages import outages_in_one_line
from store.database.schema import upgrade
from store.tables import Worker

if TYPE_CHECKING:
    from store.settings import Settings

# For the worker to finish a step, write a checkpoint, and return the job to the queue.
_WORKER_GRACE_SECONDS = 60.0
_LEFT_OVER_SECONDS = 15.0  # how long a gateway takes to end after its supervisor was killed
_LOOK_SECONDS = 0.5
_WAITING_SECONDS = 15.0  # between two log lines about missing parts
_log = structlog.get_logger(__name__)


def serve_embedded(settings: Settings, *, announce: Callable[[str], None]) -> int:
    """Serve until a signal ends the process.

    Args:
        settings: from the environment, which the parts read too.
        announce: called once with the URL, when the service can accept and run jobs.

    Returns:
        The number of the signal.

    Raises:
        SettingsError: the settings name several inference processes and none for this service.
        HomeError: another service has the folder.
        ListenError: the port is in use.
        SchemaError, DatabaseAwayError: the tables cannot be upgraded.
        CrashLoopError: a part keeps crashing.
    """
    settings.own_infer_url()  # raises before anything is started
    with own_home(settings.home) as is_left_over:
        patience = _LEFT_OVER_SECONDS if is_left_over else 0.0
        with listen(settings, patience=patience) as listener:
            with outages_in_one_line():
                upgrade(settings.database_url)
            with closing(Database(settings.database_url, pool_size=1)) as database:
                watch = _ReadyWatch(settings, url_of(listener), database, announce=announce)
                environment = _environment(settings, os.environ)
                supervisor = Supervisor(_parts(listener.fileno()), environment=environment)
                return supervisor.run(watch=watch.look)


def _parts(listener: int) -> Sequence[Part]:
    """Return the parts; the worker stops first, while the others still run.

    The gateway inherits the listening socket: while it restarts, connections wait and are not
    refused.
    """
    hifi = (sys.executable, "-m", "hifi.cli")
    gateway = (*hifi, "serve", "--only", "gateway", "--listener", str(listener))
    return (
        Part(name="gateway", command=gateway, descriptors=(listener,), rank=1),
        Part(name="worker", command=(*hifi, "worker"), grace_seconds=_WORKER_GRACE_SECONDS),
        Part(name="inference", command=(*hifi, "infer"), rank=1),
    )


def _environment(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of all parts: the operator's, plus settings that they must share."""
    environment = {**given, "HIFI_HOME": str(settings.home)}
    if "infer_url" not in settings.model_fields_set:
        environment["HIFI_INFER_URL"] = settings.infer_listen or choose_infer_url(settings.home)
    return environment


class _ReadyWatch:
    """Detects when the service is ready, and announces it once."""

    def __init__(
        self, settings: Settings, url: str, database: Database, *, announce: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._url = url
        self._database = database
        self._announce = announce
        self._old_workers = self._workers()  # of a previous service, which may have been killed
        self._look_at = 0.0  # never again once it is ready
        self._log_at = time.monotonic() + _WAITING_SECONDS

    def look(self) -> None:
        """Check whether the service is ready now."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        missing = self._missing()
        if not missing:
            self._look_at = math.inf
            self._announce(self._url)
        elif now >= self._log_at:
            self._log_at = now + _WAITING_SECONDS
            _log.info("waiting", missing=missing, models=str(self._settings.models), url=self._url)

    def _missing(self) -> list[str]:
        """Return the names of parts that are not ready; the worker first, as it takes longest."""
        if not self._has_new_worker():
            return ["worker"]
        try:
            answer = httpx2.get(
                f"{self._url}/readyz",
                headers={"Host": self._settings.allowed_hosts[0]},
                timeout=_LOOK_SECONDS * 4,
                trust_env=False,
            )
            document = answer.json()
            missing = [*document.get("failing", ()), *document["degraded"]]
        except (httpx2.TransportError, ValueError, KeyError):
            return ["gateway"]
        return missing if answer.is_success or missing else ["gateway"]

    def _has_new_worker(self) -> bool:
        try:
            return bool(self._workers() - self._old_workers)
        except OUTAGES:
            return False

    def _workers(self) -> set[str]:
        with self._database.read() as session:
            return set(session.scalars(sa.select(Worker.id)))
