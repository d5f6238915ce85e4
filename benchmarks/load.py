"""The load generator: keep-alive connections in a separate process.

Two reasons against Locust 2.47: it takes 130 µs of a core per request to a bare socket, this 20
(2,700 and 20,000 requests a second), and on two cores that slows down the measured server. And it
times a request from when it was sent, this from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing import get_context
from typing import Any, Self, cast

import numpy as np

_DRAIN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """The load to generate.

    Attributes:
        port: of the server on the loopback interface.
        requests: complete HTTP requests, sent in a cycle.
        clients: connections, each with one request at a time.
        warmup_seconds: of load before the measured time.
        seconds: of measured load.
        per_second: mean rate of requests due at random times; None for a closed loop, in which
            every client sends its next request as soon as it has its answer.
        seed: of the random times.
    """

    port: int
    requests: Sequence[bytes]
    clients: int
    warmup_seconds: float
    seconds: float
    per_second: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The measured result.

    Attributes:
        rate: answers per second of the measured time.
        p50, p95, p99, worst: milliseconds from when a request was due to its answer.
        answered: the ``id`` of each answer, empty if it has none, including the warm-up.
        errors: counts of all other outcomes, by status and code.
        late: 99th percentile of how late a request was sent, in milliseconds.
        cpu: share of one core that the generator used.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    worst: float
    answered: Sequence[str]
    errors: Mapping[str, int]
    late: float
    cpu: float


def write_request(
    path: str, body: bytes, *, key: str | None = None, idempotency_key: str | None = None
) -> bytes:
    """Return a POST request with a JSON body; ``key`` is sent as a bearer token."""
    bearer = f"Authorization: Bearer {key}\r\n" if key else ""
    once = f"Idempotency-Key: {idempotency_key}\r\n" if idempotency_key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{bearer}{once}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """An HTTP connection for one request at a time."""

    _received = b""
    _answer: asyncio.Future[tuple[int, Any]] | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect on the loopback interface."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(cls, "127.0.0.1", port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> asyncio.Future[tuple[int, Any]]:
        """Send a request; the future gets the response's status and JSON, or ConnectionError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Resolve the future once the response is complete."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length) and self._answer and not self._answer.done():
            self._received = b""
            self._answer.set_result((int(head[9:12]), json.loads(body)))

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail the future of an unanswered request."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError())

    @property
    def is_open(self) -> bool:
        """Whether the connection is open; servers close it after a time without requests."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, answered or not."""
        self._answer = None
        self._transport.close()


@dataclass
class _Load:
    """A running load: idle connections and the outcomes so far."""

    order: Order
    idle: asyncio.Queue[Connection] = field(default_factory=asyncio.Queue)
    times: list[tuple[float, float, float]] = field(default_factory=list)  # due, sent, answered
    answered: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    async def run(self) -> Report:
        """Send requests for the ordered time, and wait for the last answers."""
        for _ in range(self.order.clients):
            self.idle.put_nowait(await Connection.open(self.order.port))
        cpu, started = time.process_time(), time.perf_counter()
        end = started + self.order.warmup_seconds + self.order.seconds
        requests = cycle(self.order.requests)
        if self.order.per_second is None:
            await asyncio.gather(
                *(self._send_in_turn(requests, end) for _ in range(self.order.clients))
            )
        else:
            await self._send_when_due(requests, self.order.per_second, start=started, end=end)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        while not self.idle.empty():
            self.idle.get_nowait().close()
        return self._report(end, cpu=share)

    async def _send_in_turn(self, requests: Iterator[bytes], end: float) -> None:
        while (now := time.perf_counter()) < end:
            await self._ask(now, next(requests))

    async def _send_when_due(
        self, requests: Iterator[bytes], per_second: float, *, start: float, end: float
    ) -> None:
        arrivals = random.Random(self.order.seed)  # noqa: S311 - not a secret
        due = start
        async with asyncio.timeout_at(None) as timeout, asyncio.TaskGroup() as group:
            while (due := due + arrivals.expovariate(per_second)) < end:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                group.create_task(self._ask(due, next(requests)))
            timeout.reschedule(asyncio.get_running_loop().time() + _DRAIN_SECONDS)

    async def _ask(self, due: float, request: bytes) -> None:
        connection = await self.idle.get()
        try:
            if not connection.is_open:
                connection = await Connection.open(self.order.port)
            sent = time.perf_counter()
            status, document = await connection.send(request)
        except OSError:
            self.errors["connection lost"] += 1
        else:
            if error := error_of(status, document):
                self.errors[error] += 1
            else:
                self.times.append((due, sent, time.perf_counter()))
                self.answered.append(document.get("id", ""))
        self.idle.put_nowait(connection)

    def _report(self, end: float, *, cpu: float) -> Report:
        begin = end - self.order.seconds
        due, sent, answered = np.array(self.times).reshape(-1, 3).T
        measured = (begin <= due) & (due < end)
        if not measured.any():
            raise RuntimeError(f"no request was answered; errors: {dict(self.errors)}")
        waits = percentiles(1000 * (answered - due)[measured], 0.5, 0.95, 0.99, 1.0)
        return Report(
            rate=float(((begin <= answered) & (answered < end)).sum() / self.order.seconds),
            **dict(zip(("p50", "p95", "p99", "worst"), waits, strict=True)),
            answered=self.answered,
            errors=self.errors,
            late=percentiles(1000 * (sent - due)[measured], 0.99)[0],
            cpu=cpu,
        )


def error_of(status: int, document: Any) -> str | None:
    """Return the error in the response to a request of one input or one job; None without one."""
    if status >= 300:
        return f"{status} {document.get('code')}"
    error = document.get("error") or (document.get("data") or [{}])[0].get("error")
    return str(error["code"]) if error else None


def percentiles(values: Sequence[float] | np.ndarray, *shares: float) -> list[float]:
    """Return the smallest values that have at least these shares of all at or below them."""
    found: list[float] = np.quantile(values, shares, method="inverted_cdf").tolist()
    return found


@contextmanager
def load_generator() -> Iterator[Callable[[Order], Report]]:
    """Yield a function that runs loads in a separate process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        yield lambda order: pool.submit(_carry_out, order).result()


def _carry_out(order: Order) -> Report:
    return asyncio.run(_Load(order).run())
