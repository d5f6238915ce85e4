"""Check whether the gateway can work, in bounded time even if a dependency hangs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
from anyio import CapacityLimiter, to_thread

from service.context import from_state
from service.http.tables import TablesWatch
from store.database.schema import check
from store.jobs.workers import live_workers

if TYPE_CHECKING:
    from service.inference.client import InferenceClient
    from store.database.connection import Database
    from store.queue import TokenPublisher
    from store.storage import ArtifactStorage

_DEADLINE_SECONDS = 2.0
_NEEDED = frozenset({"tables", "artifacts", "home"})
_FRESH_SECONDS = 1.0  # the route is public and must not cause load
_WRITTEN_SECONDS = 5.0  # the same of checks that write a small file
_PROBE_BYTES = 64 << 10

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of the checks.

    Attributes:
        failing: missing dependencies without which nothing works.
        degraded: missing dependencies without which jobs are still accepted: ``broker``,
            ``worker``, ``inference``.
    """

    failing: tuple[str, ...]
    degraded: tuple[str, ...]


class Readiness:
    """Checks all dependencies of a gateway.

    Args:
        database, storage, publisher, inference: of this gateway.
        home: the folder of uploads on their way in, and of everything else on this machine.
    """

    def __init__(
        self,
        *,
        database: Database,
        storage: ArtifactStorage,
        publisher: TokenPublisher,
        inference: InferenceClient,
        home: Path,
    ) -> None:
        self._probes = {
            "tables": _Probe(_in_thread(partial(check, database))),
            "artifacts": _Probe(_in_thread(storage.check_writable), fresh=_WRITTEN_SECONDS),
            "home": _Probe(_in_thread(partial(_check_folder, home)), fresh=_WRITTEN_SECONDS),
            "broker": _Probe(_in_thread(lambda: publisher.is_reachable)),
            "worker": _Probe(_in_thread(partial(_has_worker, database))),
            "inference": _Probe(inference.is_reachable),
        }
        self._asking = asyncio.Lock()
        self._last: Report | None = None
        self._last_at = 0.0

    async def report(self) -> Report:
        """Check all dependencies concurrently; one that does not answer in two seconds is missing.

        Results up to a second old are returned again; concurrent callers share one check.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._last is None or now - self._last_at > _FRESH_SECONDS:
                self._last = await self._look()
                self._last_at = asyncio.get_running_loop().time()
            return self._last

    async def close(self) -> None:
        """Stop waiting for answers."""
        for probe in self._probes.values():
            probe.close()

    async def _look(self) -> Report:
        answers = await asyncio.gather(*(probe.ask(name) for name, probe in self._probes.items()))
        missing = [name for name, is_up in zip(self._probes, answers, strict=True) if not is_up]
        return Report(
            failing=tuple(name for name in missing if name in _NEEDED),
            degraded=tuple(name for name in missing if name not in _NEEDED),
        )


class _Probe:
    """One check that may hang; it fails by False or an error. It never runs twice at a time.

    Args:
        question: the check.
        fresh: the seconds for which an answer is returned again.
    """

    def __init__(
        self, question: Callable[[], Awaitable[bool | None]], *, fresh: float = 0.0
    ) -> None:
        self._question = question
        self._fresh = fresh
        self._asked: asyncio.Future[bool | None] | None = None
        self._last = False
        self._fresh_until = 0.0

    async def ask(self, name: str) -> bool:
        """Start the check or wait for the running one; a timeout or an error counts as False."""
        clock = asyncio.get_running_loop().time
        if self._asked is None and clock() < self._fresh_until:
            return self._last
        self._last = await self._ask(name)
        self._fresh_until = clock() + self._fresh
        return self._last

    async def _ask(self, name: str) -> bool:
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._question())
        done, _ = await asyncio.wait([self._asked], timeout=_DEADLINE_SECONDS)
        if not done:
            _log.warning("dependency_hangs", name=name)
            return False
        answered, self._asked = self._asked, None
        error = answered.exception()
        if error is not None:
            _log.warning("dependency_failed", name=name, error=str(error))
            return False
        return answered.result() is not False

    def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()


def _in_thread(question: Callable[[], bool | None]) -> Callable[[], Awaitable[bool | None]]:
    """Run a check outside the event loop, on a thread that no request needs."""
    limiter = CapacityLimiter(1)

    async def ask() -> bool | None:
        return await to_thread.run_sync(question, limiter=limiter, abandon_on_cancel=True)

    return ask


def _check_folder(folder: Path) -> None:
    """Check that a small file can be written to a folder; it is removed again.

    Raises:
        OSError: it cannot.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".hifi-probe-", buffering=0) as file:
        file.write(bytes(_PROBE_BYTES))


def _has_worker(database: Database) -> bool:
    with database.read() as session:
        return bool(live_workers(session))


ReadinessDep = Annotated[Readiness, from_state("readiness")]
TablesDep = Annotated[TablesWatch, from_state("tables")]
