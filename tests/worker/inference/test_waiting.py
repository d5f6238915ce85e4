"""worker.inference.predictions: deadlines, fair turns and cancellation of requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from store.orders import PredictionOrder
from tests.waiting import eventually, eventually_async, patience
from tests.worker.inference.asking import (
    TEXT,
    UNDER_WAY,
    WAITING,
    Background,
    Gate,
    ask,
    body,
    check_idle,
    codes,
    distinct,
    measured,
    predict,
    serve,
)
from tests.worker.inference.conftest import order_of
from worker.inference import predictions
from worker.inference.app import build_app
from worker.inference.memory.deltas import DeltaCache
from worker.inference.memory.loading import DeltaLoader
from worker.inference.serving import Serving, open_serving

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home
    from tests.worker.inference.tuned import Tuned


async def one_at_work_and_one_behind(
    serving: Serving, request: PredictionOrder, gate: Gate
) -> list[asyncio.Task[Any]]:
    """Send a request of three samples twice: one waits at the gate, one behind it."""
    await serving.predict(request)  # loads what it needs
    gate.open.clear()
    asked = [asyncio.create_task(serving.predict(request))]
    await eventually_async(lambda: len(gate.passes) == 2)
    asked.append(asyncio.create_task(serving.predict(request)))
    await eventually_async(lambda: len(serving.handler._scheduler) == 3)
    return asked


@pytest.fixture
def request_of_three(home: Home, tasks: dict[str, Tuned]) -> PredictionOrder:
    return PredictionOrder.model_validate(
        body([home.order(tasks["two"])], [(0, TEXT)] * 3),
    )


@contextmanager
def serving_at(home: Home, folder: Path) -> Iterator[Serving]:
    """Open the serving of a home without its application."""
    deltas = DeltaCache(home.storage, folder=folder / "deltas", max_bytes=1 << 30)
    with open_serving(home.settings, deltas=deltas) as serving:
        yield serving


class TestDeadline:
    def test_answers_finished_in_time_are_delivered(
        self, home: Home, tasks: dict[str, Tuned], gate: Gate
    ):
        order = home.order(tasks["two"])
        with serve(home) as client:
            ask(client, order, TEXT)
            gate.holds = lambda batch: len(batch["input_ids"][0]) > 9
            gate.open.clear()
            longer = {"text": "w1 " * 20}  # too unlike the other for one batch
            short, long, wrong = ask(client, order, TEXT, longer, {}, timeout_seconds=0.5)
            tasks["two"].check(short, TEXT)
            assert long["error"]["code"] == "deadline_exceeded"
            assert wrong["error"]["code"] == "invalid_input"
            assert measured(client)[UNDER_WAY] == 0
            gate.open.set()

    def test_leaves_nothing_in_the_queue(self, home: Home, tasks: dict[str, Tuned], gate: Gate):
        order = home.order(tasks["two"])
        with serve(home) as client:
            ask(client, order, TEXT)
            gate.open.clear()
            first = Background(lambda: ask(client, order, TEXT))
            eventually(lambda: len(gate.passes) == 2)
            late = ask(client, order, TEXT, TEXT, {"text": ""}, timeout_seconds=0.2)
            assert codes(late) == ["deadline_exceeded", "deadline_exceeded", "invalid_input"]
            assert "0.2 seconds" in late[0]["error"]["message"]
            assert late[0]["error"]["param"] is None
            figures = measured(client)
            assert (figures[UNDER_WAY], figures[WAITING]) == (1, 0)
            gate.open.set()
            assert codes(first.result()) == [None]
            assert len(gate.passes) == 2  # nothing was computed for an absent caller
            check_idle(client)


class TestFairness:
    def test_one_input_does_not_wait_for_a_thousand(
        self, home: Home, tasks: dict[str, Tuned], gate: Gate
    ):
        orders = [home.order(tasks["two"], tenant=name) for name in ("ten_1", "ten_2")]
        with serve(home, infer_batch_tokens=64) as client:
            for order in orders:
                ask(client, order, TEXT)
            gate.open.clear()
            many = [Background(lambda: ask(client, orders[0], *[TEXT] * 256)) for _ in range(4)]
            eventually(lambda: measured(client)[WAITING] > 900)
            before = len(gate.passes)
            one = Background(lambda: ask(client, orders[1], TEXT))
            eventually(lambda: measured(client)[UNDER_WAY] == 1025)
            eventually(lambda: measured(client)[WAITING] > 1000)
            gate.open.set()
            assert codes(one.result()) == [None]
            for each in many:
                assert codes(each.result()) == [None] * 256
            key = f"ten_2/{orders[1]['sha256']}"
            assert any(key in names for names in gate.passes[before : before + 2])

    def test_nor_for_the_texts_and_deltas_of_a_large_request(
        self, home: Home, backbone: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """A request for hundreds of head deltas takes turns in loading and encoding too."""
        (mine, *_), (tuned, *_) = distinct(home, backbone, count=1)
        other, theirs = home.order(tuned, tenant="ten_2"), {"text": "w7 w8 w9 w10"}
        gate, encoded, loaded = threading.Event(), [], []
        read, fetch = predictions._read, DeltaLoader._fetch

        def slow_read(delta: Any, inputs: Any, **settings: Any) -> Any:
            encoded.append("ten_2" if inputs == [theirs] else "ten_1")
            assert gate.wait(patience(60))
            return read(delta, inputs, **settings)

        def slow_fetch(self: DeltaLoader, order: Any) -> Any:
            loaded.append(order.tenant)
            assert gate.wait(patience(60))
            return fetch(self, order)

        with serve(home) as client:
            ask(client, mine, TEXT)
            monkeypatch.setattr(predictions, "_read", slow_read)
            monkeypatch.setattr(DeltaLoader, "_fetch", slow_fetch)
            lost = [order_of(f"{number:064x}") for number in range(100)]
            many = [
                Background(lambda: predict(client, [mine] * 100, [(n, TEXT) for n in range(100)])),
                Background(lambda: predict(client, lost, [(n, TEXT) for n in range(100)])),
            ]
            eventually(lambda: len(encoded) == 1)
            eventually(lambda: len(loaded) == 2)
            one = Background(lambda: ask(client, other, theirs))
            eventually(lambda: "ten_2" in loaded)  # there are threads that one tenant cannot have
            gate.set()
            tuned.check(one.result()[0], theirs)
            for each in many:
                each.result()
        assert loaded.index("ten_2") == 2
        assert encoded.index("ten_2") < 60


class TestGivingUp:
    """A caller who hangs up leaves nothing behind."""

    def test_frees_places_and_withdraws_samples(
        self, home: Home, request_of_three: PredictionOrder, gate: Gate, tmp_path: Path
    ):
        async def run() -> None:
            with serving_at(home, tmp_path) as serving:
                first, second = await one_at_work_and_one_behind(serving, request_of_three, gate)
                for task in (first, second):
                    task.cancel()
                await asyncio.wait([first, second], timeout=patience(5))
                assert first.cancelled()
                assert second.cancelled()
                assert len(serving.handler._places) == 0
                assert len(serving.handler._scheduler) == 0
                assert not serving.handler._backbones._users
                gate.open.set()
                answers = await serving.predict(request_of_three)
                assert codes(answers) == [None] * 3
                assert len(gate.passes) == 3
                assert not serving.handler._loader._packings._tasks

        asyncio.run(run())

    def test_over_http(self, home: Home, tasks: dict[str, Tuned], gate: Gate):
        """The client disconnects in the middle of a pass: the application notices and stops."""
        order = home.order(tasks["two"])
        content = json.dumps(body([order], [(0, TEXT)])).encode()
        sent: list[dict] = []

        async def run() -> None:
            app = build_app(home.settings)
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "raw_path": b"/predict",
                "query_string": b"",
                "headers": [],
            }
            gone = asyncio.Event()
            incoming = [{"type": "http.request", "body": content, "more_body": False}]

            async def receive() -> dict:
                if incoming:
                    return incoming.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict) -> None:
                sent.append(message)

            async with app.router.lifespan_context(app) as state:
                serving: Serving = state["serving"]
                gate.open.clear()
                call = asyncio.create_task(app({**scope, "state": state}, receive, send))
                await eventually_async(lambda: gate.passes)
                assert len(serving.handler._places) == 1
                gone.set()
                await asyncio.wait_for(call, patience(5))
                await eventually_async(lambda: not serving.handler._places)
                assert not serving.handler._backbones._users
                gate.open.set()

        asyncio.run(run())
        assert sent[0]["status"] == 499

    def test_shutdown_does_not_wait_for_queued_samples(
        self, home: Home, request_of_three: PredictionOrder, gate: Gate, tmp_path: Path
    ):
        async def run() -> None:
            with serving_at(home, tmp_path) as serving:
                asked = await one_at_work_and_one_behind(serving, request_of_three, gate)
                opener = threading.Timer(0.2, gate.open.set)
                opener.start()
            for task in asked:
                task.cancel()
            await asyncio.wait(asked, timeout=patience(5))

        asyncio.run(run())
        assert len(gate.passes) == 2  # the batch that was under way, and no other
        assert not any(thread.name == "executor" for thread in threading.enumerate())
