"""The load generator: HTTP/1.1 clients that keep their connections, in a process of their own.

Each order is one line of JSON with the fields of :class:`Order`, each answer one with those of
:class:`Report`. Sockets and a few lines of parsing: it takes a small share of the time of what it
asks, so that one core is enough for it and the database.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.service.line_process import answer_lines

ACCEPTED = 202
_DRAIN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be sent.

    Attributes:
        port: of the server on the loopback interface.
        bodies: client ``n`` posts ``bodies[n % len(bodies)]`` to ``/jobs``, JSON texts.
        keys: likewise; the client's bearer.
        clients: connections.
        warmup_seconds: of load before what is measured.
        seconds: of load that is measured.
        per_second: requests arrive by themselves, at random, so many per second; None where every
            client sends its next one as soon as it is answered.
    """

    port: int
    bodies: Sequence[str]
    keys: Sequence[str]
    clients: int
    warmup_seconds: float
    seconds: float
    per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        rate: answers per second of the measured time.
        p50, p99, worst: milliseconds from when a request was due to its answer.
        accepted: ids of all jobs that were accepted, before, in and after the measured time.
        errors: all other outcomes, by status, with how often they came.
        cpu: share of one core that the generator took.
    """

    rate: float
    p50: float
    p99: float
    worst: float
    accepted: Sequence[str]
    errors: Mapping[str, int]
    cpu: float


@dataclass(frozen=True, slots=True)
class _Answered:
    due: float
    at: float
    status: int
    job: str


class _Client(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(self, request: bytes, on_answer: Callable[[_Client, _Answered], None]) -> None:
        self._request = request
        self._on_answer = on_answer
        self._transport: asyncio.WriteTransport | None = None
        self._due: float | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def send(self, due: float) -> None:
        """Send the request that was due at a moment."""
        self._due = due
        if self._transport is None or self._transport.is_closing():
            asyncio.get_running_loop().call_soon(self._answer, 0, "")
        else:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower() + b"\r\n"
        if len(self._received) < end + 4 + int(_header(head, b"content-length") or 0):
            return
        self._received = b""
        self._answer(int(head[9:12]), _header(head, b"location").rpartition("/")[2])

    def connection_lost(self, _error: Exception | None) -> None:
        if self._due is not None:
            self._answer(0, "")

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _answer(self, status: int, job: str) -> None:
        if self._due is not None:
            answered = _Answered(due=self._due, at=time.perf_counter(), status=status, job=job)
            self._due = None
            self._on_answer(self, answered)


def _header(head: bytes, name: bytes) -> str:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip().decode("latin-1")


class _Load:
    """Requests on their way, and the answers so far."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._clients: list[_Client] = []
        self._idle: deque[_Client] = deque()
        self._waiting: deque[float] = deque()  # when those were due that found no idle client
        self._is_over = False
        self._drained = asyncio.Event()
        self._answers: list[_Answered] = []

    async def run(self) -> Report:
        """Connect, send for the time ordered, and wait for the last answers."""
        await self._connect()
        cpu, started = time.process_time(), time.perf_counter()
        if self._order.per_second is None:
            await self._send_in_turn()
        else:
            await self._send_when_due(self._order.per_second)
        self._is_over = True
        self._see_whether_drained()
        await asyncio.wait_for(self._drained.wait(), _DRAIN_SECONDS)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        for client in self._clients:
            client.close()
        return self._report(started + self._order.warmup_seconds, cpu=share)

    async def _connect(self) -> None:
        loop, order = asyncio.get_running_loop(), self._order
        for n in range(order.clients):
            request = _request(order.bodies[n % len(order.bodies)], order.keys[n % len(order.keys)])
            client = _Client(request, self._take)
            await loop.create_connection(
                lambda client=client: client,  # type: ignore[misc] # mypy infers no lambda's type
                "127.0.0.1",
                order.port,
            )
            self._clients.append(client)
        self._idle.extend(self._clients)

    async def _send_in_turn(self) -> None:
        while self._idle:
            self._idle.popleft().send(time.perf_counter())
        await asyncio.sleep(self._order.warmup_seconds + self._order.seconds)

    async def _send_when_due(self, per_second: float) -> None:
        draw = random.Random(0)  # noqa: S311 - arrivals, no secret
        due = time.perf_counter()
        end = due + self._order.warmup_seconds + self._order.seconds
        while (due := due + draw.expovariate(per_second)) < end:
            wait = due - time.perf_counter()
            await asyncio.sleep(max(wait, 0))  # of nothing too: the clients must get to read
            if self._idle:
                self._idle.popleft().send(due)
            else:
                self._waiting.append(due)

    def _take(self, client: _Client, answered: _Answered) -> None:
        self._answers.append(answered)
        takes_turns = self._order.per_second is None and not self._is_over
        if self._waiting:
            client.send(self._waiting.popleft())
        elif takes_turns and answered.status:
            client.send(time.perf_counter())
        else:
            self._idle.append(client)
            self._see_whether_drained()

    def _see_whether_drained(self) -> None:
        if self._is_over and not self._waiting and len(self._idle) == len(self._clients):
            self._drained.set()

    def _report(self, begin: float, *, cpu: float) -> Report:
        end = begin + self._order.seconds
        accepted = [answer for answer in self._answers if answer.status == ACCEPTED]
        others = [answer.status for answer in self._answers if answer.status != ACCEPTED]
        inside = sum(begin <= answer.at < end for answer in accepted)
        waits = sorted(1000 * (a.at - a.due) for a in accepted if begin <= a.due < end)
        errors = Counter("connection lost" if status == 0 else str(status) for status in others)
        if not waits:
            raise RuntimeError(f"no request was accepted; there were {dict(errors)}")
        return Report(
            rate=inside / self._order.seconds,
            p50=waits[len(waits) // 2],
            p99=waits[len(waits) * 99 // 100],
            worst=waits[-1],
            accepted=[answer.job for answer in accepted],
            errors=dict(errors),  # a Counter's keys do not survive asdict
            cpu=cpu,
        )


def _request(body: str, key: str) -> bytes:
    data = body.encode()
    head = (
        "POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order."""

    async def run() -> Report:
        return await _Load(Order(**order)).run()

    return asdict(asyncio.run(run()))


if __name__ == "__main__":
    answer_lines(answer)
