"""A worker's background duties: heartbeat, dead workers' jobs, lost tokens, unnamed blobs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from store.administration.removal import remove_deleted
from store.database.connection import OUTAGES
from store.database.schema import check
from store.errors import ArtifactStorageError, SchemaError
from store.jobs.reconciler import forget_old_records, renew_tokens, take_back_expired
from store.jobs.workers import LIVE_SECONDS, beat
from store.storage.space import end_expired
from store.storage.unnamed import remove_unnamed
from store.sweep import sweep

if TYPE_CHECKING:
    from store.queue import TokenPublisher
    from worker.context import WorkerContext

_BEAT_SECONDS = 2.0
_OUTAGE_SECONDS = 3 * _BEAT_SECONDS  # without an answer
_SWEEP_SECONDS = 3600.0
_FREE_SECONDS = 10.0
_ENDING_SECONDS = 5.0
_GRACE_SECONDS = 24 * 3600.0  # a blob is stored before a row names it
_log = structlog.get_logger(__name__)


class Upkeep:
    """Threads that repeat the background duties until closed; failures are retried."""

    def __init__(self, context: WorkerContext, *, publisher: TokenPublisher) -> None:
        self._context = context
        self._publisher = publisher
        self._closed = threading.Event()
        self._patience = min(context.settings.lease_seconds, LIVE_SECONDS)
        self._answered_at = -math.inf  # when the database last answered, by our clock
        self._beat_at: datetime | None = None  # the same by the database's clock
        self._takes_back_from = 0.0
        self._has_other_tables = False
        # In a separate thread: a sweep of a large store takes minutes, and heartbeats must go on.
        rounds = (
            (self._look_after_jobs, _BEAT_SECONDS),
            (self._sweep, _SWEEP_SECONDS),
            (self._free_space, _FREE_SECONDS),
        )
        self._threads = [
            threading.Thread(target=self._repeat, args=round_, name="upkeep", daemon=True)
            for round_ in rounds
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; a running sweep is not waited for."""
        self._closed.set()
        self._threads[0].join(timeout=_ENDING_SECONDS)

    def _repeat(self, work: Callable[[], None], seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                work()
            except (*OUTAGES, ArtifactStorageError, SchemaError) as error:
                _log.warning("upkeep put off", reason=type(error).__name__)
            except Exception:  # noqa: BLE001 - without upkeep a living worker would count as dead
                _log.exception("upkeep failed; the next round comes")

    def _look_after_jobs(self) -> None:
        database = self._context.database
        if not self._tables_fit():
            return
        beat_at = beat(database, self._context.worker_id)
        if beat_at is None:
            if not self._closed.is_set():
                self._context.sign_on()  # the tables were restored, or it was away for a day
            return
        if self._leases_could_be_renewed(beat_at):
            taken_back = take_back_expired(database, before=beat_at)
            if taken_back:
                _log.warning("jobs of lost workers taken back", jobs=taken_back)
        remove_deleted(database)
        tokens = renew_tokens(database)
        if tokens:
            self._publisher.publish(tokens)

    def _tables_fit(self) -> bool:
        """Return whether the tables are of this version; if not, this worker counts as away."""
        try:
            check(self._context.database)
        except SchemaError as error:
            if not self._has_other_tables:
                _log.error("the tables were changed; no job is claimed", reason=str(error))
            self._has_other_tables = True
            return False
        if self._has_other_tables:
            _log.info("the tables are of this version again")
        self._has_other_tables = False
        return True

    def _leases_could_be_renewed(self, beat_at: datetime) -> bool:
        """Return whether live workers have had time to renew their leases since the last outage.

        A worker that has just started does not know and waits too. Our clock stops while this
        machine sleeps, and the database's may be set; a jump of either counts as an outage.
        """
        now = time.monotonic()
        leap = 0.0 if self._beat_at is None else (beat_at - self._beat_at).total_seconds()
        if max(now - self._answered_at, leap) > _OUTAGE_SECONDS:
            self._takes_back_from = now + self._patience
        self._answered_at, self._beat_at = now, beat_at
        return now >= self._takes_back_from

    def _sweep(self) -> None:
        check(self._context.database)  # a sweep that misreads the tables would remove blobs
        forget_old_records(self._context.database)
        removed = sweep(self._context.database, self._context.storage, grace_seconds=_GRACE_SECONDS)
        _log.info("unnamed blobs removed", blobs=removed)

    def _free_space(self) -> None:
        """Remove what jobs and dead gateways have left, and what gateways could not remove."""
        try:
            check(self._context.database)
        except SchemaError:  # the signs of life log it
            return
        end_expired(self._context.database)
        remove_unnamed(self._context.database, self._context.storage)
