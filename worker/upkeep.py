"""What a worker sees to beside its jobs: its sign of life, the dead's jobs, lost tokens, blobs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog

from store.database import OUTAGES
from store.errors import ArtifactStorageError
from store.reconciler import reconcile
from store.sweep import sweep
from store.workers import LIVE_SECONDS, beat

if TYPE_CHECKING:
    from store.queue import TokenPublisher
    from worker.workshop import Workshop

_BEAT_SECONDS = 2.0
_SWEEP_SECONDS = 3600.0
_GRACE_SECONDS = 24 * 3600.0  # a blob is stored before a row names it
_log = structlog.get_logger(__name__)


class Upkeep:
    """A thread that does it every few seconds until it is closed; outages are waited out.

    Args:
        workshop: the worker's tools.
        publisher: for tokens that were lost.
    """

    def __init__(self, workshop: Workshop, *, publisher: TokenPublisher) -> None:
        self._workshop = workshop
        self._publisher = publisher
        self._closed = threading.Event()
        self._swept = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS):
            try:
                self._round()
            except (*OUTAGES, ArtifactStorageError) as error:
                _log.warning("upkeep put off", reason=type(error).__name__)

    def _round(self) -> None:
        database = self._workshop.database
        beat(database, self._workshop.worker_id)
        done = reconcile(database, live_seconds=LIVE_SECONDS)
        if done.taken_back:
            _log.warning("jobs of lost workers taken back", jobs=done.taken_back)
        if done.tokens:
            self._publisher.publish(done.tokens)
        if time.monotonic() - self._swept >= _SWEEP_SECONDS:
            self._swept = time.monotonic()
            removed = sweep(database, self._workshop.storage, grace_seconds=_GRACE_SECONDS)
            _log.info("unnamed blobs removed", blobs=removed)
