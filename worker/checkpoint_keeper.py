"""Store checkpoints in the background while training continues."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from store.errors import ArtifactStorageError

if TYPE_CHECKING:
    from store.storage import Blob
    from worker.job_files import JobFiles
    from worker.reporting import Reporter

_PAUSE_SECONDS = 2.0  # between two attempts
_log = structlog.get_logger(__name__)


class CheckpointKeeper:
    """Stores one checkpoint at a time; of those that arrive meanwhile, it keeps only the last.

    :meth:`go_on` and :meth:`settle` raise LeaseLostError if the worker no longer holds the job.

    Attributes:
        newest: the step of the newest one that is stored and recorded; None before the first.
    """

    def __init__(self, files: JobFiles, *, reporter: Reporter) -> None:
        self._files = files
        self._reporter = reporter
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._next: tuple[int, Path] | None = None
        self._current: tuple[int, Path, Future[dict[str, Blob]]] | None = None
        self._not_before = 0.0
        self.newest: int | None = None

    def close(self) -> None:
        """Release the thread."""
        self._helper.shutdown(wait=False, cancel_futures=True)

    def offer(self, step: int, files: Sequence[str]) -> None:
        """Accept a checkpoint that the engine has just written.

        Its files are pinned, because the engine removes them when it writes the next checkpoint.
        """
        try:
            pinned = self._files.pin_checkpoint(list(map(Path, files)))
        except FileNotFoundError:  # a newer checkpoint has replaced it and will arrive soon
            return
        except OSError as error:
            _log.warning("checkpoint not stored", step=step, reason=str(error))
            return
        if self._next is not None:
            self._files.unpin(self._next[1])
        self._next = step, pinned

    def go_on(self) -> None:
        """Check the current upload; if it is done, record it and start the next."""
        if self._current is not None and self._current[2].done():
            self._finish(*self._current)
        is_due = time.monotonic() >= self._not_before
        if self._current is None and self._next is not None and is_due:
            step, pinned = self._next
            self._next = None
            self._current = step, pinned, self._helper.submit(self._files.put_checkpoint, pinned)

    def settle(self) -> None:
        """Wait until the newest checkpoint is stored or has failed."""
        self.go_on()
        while self._current is not None:
            future = self._current[2]
            try:
                future.exception(timeout=0.25)
            except TimeoutError:
                self._reporter.beat()
                continue
            is_failed = future.exception() is not None
            self.go_on()
            if is_failed:
                return

    def abandon(self) -> None:
        """Forget the newest checkpoint: wait until none is being stored, whatever becomes of it.

        One that were stored after the job has ended would stay without a row.
        """
        self._next = None
        while self._current is not None:
            try:
                self._current[2].exception(timeout=0.25)
            except TimeoutError:
                self._reporter.beat()
            else:
                self._current = None

    def _finish(self, step: int, pinned: Path, future: Future[dict[str, Blob]]) -> None:
        self._current = None
        try:
            blobs = future.result()
        except (ArtifactStorageError, OSError) as error:
            _log.warning("checkpoint not stored", step=step, reason=str(error))
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            if self._next is None:
                self._next = step, pinned  # retry, unless there is a newer one
            else:
                self._files.unpin(pinned)
            return
        self._files.unpin(pinned)
        self._reporter.flush()  # first the earlier events: a resumed job does not repeat them
        self._reporter.insist(self._reporter.lease.keep_checkpoint, step=step, files=blobs)
        self.newest = step
