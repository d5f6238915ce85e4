"""The load generator for predictions: connections that are kept, in a process of their own.

Each order is one line of JSON with the fields of :class:`Order`, each answer one with those of
:class:`Report`. A request is bytes put together and an answer a line of JSON read: less than half
a millisecond of a core for both, where computing the answer takes ten.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Self

from benchmarks.service.line_process import answer_lines

_DRAIN_SECONDS = 60.0
_TIMEOUT_SECONDS = 30.0


class Connection:
    """One connection to an inference process, with one request at a time on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect on the loopback interface."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, body: bytes) -> None:
        """Post to ``/predict``."""
        head = (
            "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)

    async def receive(self) -> tuple[int, Any]:
        """Wait for the answer; give its status and its document.

        Raises:
            ConnectionError, asyncio.IncompleteReadError: the other side hung up.
        """
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = head.partition(b"\r\ncontent-length:")
        body = await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        return int(head.split(b" ", 2)[1]), json.loads(body)

    @property
    def is_open(self) -> bool:
        """Whether the other side has not hung up, as servers do when nothing comes for long."""
        return not self._reader.at_eof()

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def request_body(
    orders: Sequence[str], items: Sequence[tuple[int, str]], *, truncate: bool = True
) -> bytes:
    """Put a request together.

    Args:
        orders: of head deltas, JSON texts.
        items: of each the index of its order, and its input, a JSON text.
        truncate: whether texts are cut as in training.
    """
    asked = ",".join(f'{{"order":{order},"input":{given}}}' for order, given in items)
    return (
        f'{{"orders":[{",".join(orders)}],"items":[{asked}],"truncate":{json.dumps(truncate)},'
        f'"timeout_seconds":{_TIMEOUT_SECONDS}}}'
    ).encode()


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be sent.

    Attributes:
        port: of the inference process on the loopback interface.
        deltas: orders of head deltas as JSON texts, those asked for most often first.
        inputs: JSON texts, all as likely.
        exponent: of Zipf's law; the n-th head delta is asked for ``n ** -exponent`` times as often
            as the first.
        clients: each sends its next request as soon as it is answered.
        warmup_seconds: of load before what is measured.
        seconds: of load that is measured.
        per_second: instead, requests arrive by themselves, at random, so many per second.
        seed: of arrivals, inputs and head deltas, each drawn by itself: with another ``deltas``
            the same inputs come at the same moments.
    """

    port: int
    deltas: Sequence[str]
    inputs: Sequence[str]
    exponent: float
    clients: int
    warmup_seconds: float
    seconds: float
    per_second: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        rate: answers per second of the measured time.
        p50, p95, p99, worst: milliseconds from when a request was due to its answer.
        answered: how many there were, before, in and after the measured time.
        errors: all other outcomes, by code or status, with how often they came.
        late: milliseconds, the 99th percentile of how late a request was sent.
        cpu: share of one core that the generator took.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    worst: float
    answered: int
    errors: Mapping[str, int]
    late: float
    cpu: float


@dataclass(frozen=True, slots=True)
class _Answered:
    due: float
    sent: float
    at: float


class _Load:
    """Requests on their way, and what came of those before."""

    def __init__(self, order: Order) -> None:
        self._order = order
        ranks = range(1, len(order.deltas) + 1)
        self._weights = list(accumulate(rank**-order.exponent for rank in ranks))
        self._arrivals, self._picks, self._texts = (
            random.Random(f"{name} {order.seed}")  # noqa: S311 - a draw, no secret
            for name in ("arrivals", "deltas", "inputs")
        )
        self._idle: list[Connection] = []
        self._answered: list[_Answered] = []
        self._errors: Counter[str] = Counter()

    async def run(self) -> Report:
        """Send for the time ordered, and wait for the last answers."""
        cpu, started = time.process_time(), time.perf_counter()
        end = started + self._order.warmup_seconds + self._order.seconds
        if self._order.per_second is None:
            await asyncio.gather(*(self._send_in_turn(end) for _ in range(self._order.clients)))
        else:
            await self._send_when_due(self._order.per_second, start=started, end=end)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        for connection in self._idle:
            connection.close()
        return self._report(end, cpu=share)

    async def _send_in_turn(self, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await self._ask(now, self._draw())

    async def _send_when_due(self, per_second: float, *, start: float, end: float) -> None:
        under_way: set[asyncio.Task[None]] = set()
        due = start
        while (due := due + self._arrivals.expovariate(per_second)) < end:
            body = self._draw()
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self._ask(due, body))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        async with asyncio.timeout(_DRAIN_SECONDS):
            await asyncio.gather(*under_way)

    def _draw(self) -> bytes:
        (delta,) = self._picks.choices(self._order.deltas, cum_weights=self._weights)
        return request_body([delta], [(0, self._texts.choice(self._order.inputs))])

    async def _ask(self, due: float, body: bytes) -> None:
        try:
            connection = await self._connection()
            sent = time.perf_counter()
            connection.send(body)
            error = _error_of(*await connection.receive())
        except (OSError, asyncio.IncompleteReadError):
            self._errors["connection lost"] += 1
            return
        self._idle.append(connection)
        if error is None:
            self._answered.append(_Answered(due, sent, time.perf_counter()))
        else:
            self._errors[error] += 1

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.close()
        return await Connection.open(self._order.port)

    def _report(self, end: float, *, cpu: float) -> Report:
        begin = end - self._order.seconds
        measured = [answered for answered in self._answered if begin <= answered.due < end]
        if not measured:
            raise RuntimeError(f"no request was answered; there were {dict(self._errors)}")
        waits = sorted(1000 * (answered.at - answered.due) for answered in measured)
        return Report(
            rate=sum(begin <= a.at < end for a in self._answered) / self._order.seconds,
            p50=percentile(waits, 0.50),
            p95=percentile(waits, 0.95),
            p99=percentile(waits, 0.99),
            worst=waits[-1],
            answered=len(self._answered),
            errors=dict(self._errors),  # asdict takes a Counter apart
            late=percentile(sorted(1000 * (a.sent - a.due) for a in measured), 0.99),
            cpu=cpu,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Give the smallest value that has at least a share of all values at or below it."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _error_of(status: int, document: Any) -> str | None:
    """Say what is wrong with the answer to a request of one input."""
    if status != 200:
        return f"{status} {document.get('code')}"
    error = document["data"][0].get("error")
    return None if error is None else str(error["code"])


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order."""

    async def run() -> Report:
        return await _Load(Order(**order)).run()

    return asdict(asyncio.run(run()))


if __name__ == "__main__":
    answer_lines(answer)
