"""The inference process under open load: 1,024 tasks against one, at the same rate."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import Connection, Order, Report, error_of, load_generator, percentiles
from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import end_in_order
from benchmarks.serving.deltas import store_minilm_deltas
from benchmarks.serving.inference import Inference, inference, mrpc_inputs, prediction_request

if TYPE_CHECKING:
    from store.orders import DeltaOrder

TASKS, TENANTS = 1024, 64
EXPONENT = 1.0
LOAD = 0.7
BUSY_CLIENTS = 128  # of a closed loop: about three full batches are waiting at any time
TURNS = 5
SECONDS, WARMUP_SECONDS = 40.0, 4.0
COLD = 200  # requests
_AT_ONCE = 64
_DRAWN = 4096  # distinct requests, repeated in a longer load


def draw_load(
    port: int, deltas: Sequence[DeltaOrder], *, per_second: float | None, seed: int
) -> Order:
    """Draw predictions of MRPC's pairs, one input per request, tasks by Zipf's law.

    Equal seeds send the same inputs at the same times.
    """
    inputs = mrpc_inputs()
    weights = list(accumulate(rank**-EXPONENT for rank in range(1, len(deltas) + 1)))
    picks, texts = (random.Random(f"{name} {seed}") for name in ("deltas", "inputs"))  # noqa: S311
    drawn = picks.choices(deltas, cum_weights=weights, k=_DRAWN)
    return Order(
        port=port,
        requests=[prediction_request([delta], [(0, texts.choice(inputs))]) for delta in drawn],
        clients=BUSY_CLIENTS,
        warmup_seconds=WARMUP_SECONDS,
        seconds=SECONDS,
        per_second=per_second,
        seed=seed,
    )


def ask_each(port: int, deltas: Sequence[DeltaOrder], *, at_once: int) -> list[float]:
    """Request a prediction of each head delta, ``at_once`` per request, one after another.

    Returns:
        The milliseconds of each request.
    """
    inputs = mrpc_inputs()

    async def run() -> list[float]:
        connection = await Connection.open(port)
        took = []
        for start in range(0, len(deltas), at_once):
            some = deltas[start : start + at_once]
            items = [(n, inputs[(start + n) % len(inputs)]) for n in range(len(some))]
            started = time.perf_counter()
            status, document = await connection.send(prediction_request(some, items))
            took.append(1000 * (time.perf_counter() - started))
            if error_of(status, document):
                raise RuntimeError(f"a request failed: {status} {document}")
        connection.close()
        return took

    return asyncio.run(run())


def measure_load(server: Inference, deltas: Sequence[DeltaOrder]) -> Iterator[Row]:
    """Measure all tasks and a single one in turns, with all deltas resident before."""
    ask_each(server.port, deltas, at_once=_AT_ONCE)
    label = f"{len(deltas):,} tasks of {TENANTS} tenants by Zipf, one input of MRPC a request"
    resident = server.metric('hifi_inference_deltas{tier="device"}')
    yield Row(f"{label}: tasks that are not resident", len(deltas) - resident, "≤ 0")
    with load_generator() as carry_out:

        def ask(asked: Sequence[DeltaOrder], *, per_second: float | None, turn: int) -> Report:
            return carry_out(draw_load(server.port, asked, per_second=per_second, seed=turn))

        full = [ask(deltas, per_second=None, turn=turn) for turn in range(TURNS)]
        capacity = statistics.median(report.rate for report in full)
        yield Row(f"{label}: capacity, {BUSY_CLIENTS} clients", capacity, unit="/s")
        rate = LOAD * capacity
        many, one = [], []
        for turn in range(TURNS):
            many.append(ask(deltas, per_second=rate, turn=turn))
            one.append(ask(deltas[:1], per_second=rate, turn=turn))
    label = f"arriving at random, {LOAD:.0%} of that capacity ({rate:.1f}/s)"
    for whose, reports in ((f"{len(deltas):,} tasks", many), ("1 task", one)):
        for name in ("p50", "p95", "p99", "worst"):
            value = statistics.median(getattr(report, name) for report in reports)
            yield Row(f"{label}, {whose}: {name}", value, unit="ms")
    ratios = [ours.p95 / theirs.p95 for ours, theirs in zip(many, one, strict=True)]
    ratio = statistics.median(r.p95 for r in many) / statistics.median(r.p95 for r in one)
    turns = ", ".join(f"{value:.2f}" for value in ratios)
    yield Row(f"p95 of {len(deltas):,} tasks / of 1 task (by turns: {turns})", ratio, "≤ 1.5")
    yield _errors(f"{label}: errors", [*many, *one], limit="≤ 0")
    yield _errors(f"{BUSY_CLIENTS} clients without a pause: errors", full, limit=None)
    cpu = max(report.cpu for report in (*full, *many, *one))
    yield Row("share of a core that the load generator used", cpu)
    yield Row("99 % of requests were sent within", max(r.late for r in many + one), unit="ms")
    yield Row("resident memory of the inference process", server.megabytes, unit="MB")
    own = server.metric('hifi_inference_delta_bytes{tier="device"}') / 1e6
    yield Row("of that, head deltas", own, unit="MB")


def _errors(label: str, reports: Sequence[Report], *, limit: str | None) -> Row:
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    kinds = ", ".join(f"{count} × {kind}" for kind, count in errors.most_common())
    answered = sum(len(report.answered) for report in reports)
    return Row(f"{label} next to {answered:,} answers ({kinds or 'none'})", errors.total(), limit)


def measure_cold(server: Inference, deltas: Sequence[DeltaOrder]) -> Iterator[Row]:
    """Measure first requests for head deltas that are only in the artifact store."""
    first, *others = deltas[-COLD - 1 :]
    ask_each(server.port, [first], at_once=1)  # loads the backbone
    for what in ("that is only in the artifact store", "that is resident"):
        took = ask_each(server.port, others, at_once=1)
        label = f"a request for a head delta {what}, nothing else in flight"
        for name, value in zip(("p50", "p95"), percentiles(took, 0.5, 0.95), strict=True):
            yield Row(f"{label}: {name}", value, unit="ms")


def main() -> Iterator[Row]:
    """Measure open load and cold starts; takes fifteen minutes."""
    with tempfile.TemporaryDirectory(prefix="hifi-artifacts-") as folder:
        artifacts = Path(folder)
        deltas = store_minilm_deltas(artifacts, count=TASKS, tenants=TENANTS)
        for measure in (measure_load, measure_cold):
            with inference(artifacts) as server:
                yield from measure(server, deltas)


if __name__ == "__main__":
    end_in_order()
    print_rows(main())
