"""The inference processes: which of them serves a head delta, and which are left out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import httpx2
import structlog

from service.inference.health import Health
from store.resources.turns import SingleFlight

if TYPE_CHECKING:
    from store.orders import DeltaOrder
    from store.settings import Settings

CONNECT_SECONDS = 2.0
_PROBE_SECONDS = 1.0
# While a request is under way, its process is asked every now and then whether it answers at all. A
# busy one answers late, so it has more time than for other probes.
_QUIET_SECONDS = 2.0
_HUNG_SECONDS = 3.0
_SILENT_PROBES = 2
_PROBES_EVERY_SECONDS = 0.25  # while a process is left out
_MAX_STREAMS = 32  # each keeps a merged model on the disk of its inference process
_MAX_PREDICTIONS = 128  # each keeps the inputs in our memory
_KEEPALIVE_SECONDS = 2.0  # below uvicorn's five, so that it does not close while we send
_Done = TypeVar("_Done")
_log = structlog.get_logger(__name__)


class HungError(Exception):
    """A process has stopped answering during a request."""


class Process:
    """The connections to one inference process, over TCP or a Unix socket, and its health.

    Merged models and predictions use separate connection pools, so neither can starve the other.

    Args:
        url: its address.
        settings: have the token.

    Attributes:
        streams: for merged models and probes.
        predictions: for predictions.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.health = Health()
        self.streams = _connect(url, settings, most=_MAX_STREAMS + 1)
        self.predictions = _connect(url, settings, most=_MAX_PREDICTIONS)
        self._probing: SingleFlight[str, bool] = SingleFlight()

    async def probe(self) -> bool:
        """Return whether the process answers within about a second."""
        try:
            response = await self.streams.get("/healthz", timeout=_PROBE_SECONDS)
        except httpx2.TransportError:
            return False
        return response.status_code == HTTPStatus.OK

    async def unless_hung(self, request: Awaitable[_Done]) -> _Done:
        """Await a request to this process for as long as the process answers anything.

        Raises:
            HungError: it does not; the request is cancelled.
        """
        try:
            async with asyncio.timeout(None) as limit:
                watch = asyncio.create_task(self._watch(limit))
                try:
                    return await request
                finally:
                    watch.cancel()
        except TimeoutError:
            if limit.expired():
                raise HungError from None
            raise

    async def _watch(self, limit: asyncio.Timeout) -> None:
        """End a request's time when probes get no answer; requests share the probes."""
        silent = 0  # probes in a row
        while silent < _SILENT_PROBES:
            await asyncio.sleep(0.0 if silent else _QUIET_SECONDS)
            is_silent = await self._probing.join("", self._is_silent)
            silent = silent + 1 if is_silent else 0
        limit.reschedule(asyncio.get_running_loop().time())

    async def _is_silent(self) -> bool:
        """Return whether the process gets a probe and does not answer it in time.

        One that refuses the connection is ending: it finishes its requests, or breaks them.
        """
        try:
            await self.streams.get("/healthz", timeout=_HUNG_SECONDS)
        except (httpx2.ConnectTimeout, httpx2.WriteTimeout, httpx2.ReadTimeout):
            return True
        except httpx2.TransportError:
            pass
        return False

    async def close(self) -> None:
        """Close all connections."""
        await self.streams.aclose()
        await self.predictions.aclose()


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """What the metrics show of a process.

    Attributes:
        url: its address.
        is_up: whether it is used.
        failures: connections that failed or broke, including probes.
    """

    url: str
    is_up: bool
    failures: int


class Processes:
    """Chooses a process for each head delta. Used on one event loop.

    Each head delta has an order of the processes of its own (rendezvous hashing), and is served by
    the first one that is used. So a delta is in the memory of one process only, and removing a
    process moves only the deltas that it served.

    Args:
        settings: have the addresses and the token.
    """

    def __init__(self, settings: Settings) -> None:
        self._all = [Process(url, settings) for url in settings.infer_urls]
        self._watches: dict[Process, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def choose(self, delta: DeltaOrder) -> Process:
        """Return the process for a head delta.

        If none is used, it is one that answers; if none answers, the first of the delta's order.
        """
        ranked = sorted(self._all, key=lambda process: _rank(process.url, delta.key))
        used = (process for process in ranked if process.health.is_used)
        answering = (process for process in ranked if process.health.is_answering)
        return next(used, None) or next(answering, None) or ranked[0]

    def divide(self, deltas: Sequence[DeltaOrder]) -> Mapping[Process, Sequence[int]]:
        """Return the indices of the head deltas that each process serves."""
        parts: dict[Process, list[int]] = {}
        for index, delta in enumerate(deltas):
            parts.setdefault(self.choose(delta), []).append(index)
        return parts

    @property
    def can_try(self) -> bool:
        """Whether a process is used or answers."""
        return any(process.health.is_used or process.health.is_answering for process in self._all)

    def were_here(self, *, seconds: float) -> bool:
        """Return whether a process answers, or did so at most ``seconds`` ago."""
        return any(process.health.was_here(seconds=seconds) for process in self._all)

    def note_answer(self, process: Process) -> None:
        """Note that a process has answered a request."""
        process.health.note_answer()

    def note_failure(self, process: Process, *, was_reached: bool) -> None:
        """Leave a process out, and probe it until it is used again.

        Args:
            process: could not be reached, or has ended.
            was_reached: which of the two.
        """
        if process.health.is_used:
            _log.warning("inference_process_lost", url=process.url)
        process.health.note_failure(was_reached=was_reached)
        if process not in self._watches:
            self._watches[process] = asyncio.create_task(self._watch(process))

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until a process answers again, at most ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def is_one_reachable(self) -> bool:
        """Return whether any process answers within about a second.

        One that does not is not left out for that: it may only be slow.
        """
        answers = await asyncio.gather(*(process.probe() for process in self._all))
        for process, answered in zip(self._all, answers, strict=True):
            if answered:
                process.health.note_answer()
        return any(answers)

    def states(self) -> list[ProcessState]:
        """Return the state of each process, in the order of the setting."""
        return [
            ProcessState(
                url=process.url, is_up=process.health.is_used, failures=process.health.failures
            )
            for process in self._all
        ]

    async def close(self) -> None:
        """Stop probing, and close all connections."""
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)
        for process in self._all:
            await process.close()

    async def _watch(self, process: Process) -> None:
        """Probe a process until it is used again."""
        while not process.health.is_used:
            await asyncio.sleep(_PROBES_EVERY_SECONDS)
            if await process.probe():
                process.health.note_answer()
                self._changed.set()
                self._changed = asyncio.Event()
            else:
                process.health.note_failure()
        del self._watches[process]
        _log.info("inference_process_used_again", url=process.url)


def _rank(url: str, key: str) -> bytes:
    return hashlib.blake2b(f"{url}\n{key}".encode(), digest_size=8).digest()


def _connect(url: str, settings: Settings, *, most: int) -> httpx2.AsyncClient:
    address = urlsplit(url)
    is_socket = address.scheme == "unix"
    token = settings.infer_token
    return httpx2.AsyncClient(
        base_url="http://inference" if is_socket else url,
        transport=httpx2.AsyncHTTPTransport(
            uds=unquote(address.path) if is_socket else None,
            limits=httpx2.Limits(max_connections=most, keepalive_expiry=_KEEPALIVE_SECONDS),
        ),
        headers={} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"},
    )
