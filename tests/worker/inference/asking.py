"""Requests for predictions, as a gateway writes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.testclient import TestClient

from hifi.serving.bank import HeadBank
from store.storage import ArtifactStorage
from tests.waiting import patience
from tests.worker.inference.tuned import Tuned, tune
from worker.inference.app import build_app

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home

Given = Mapping[str, str]
WAIT = 30.0
TEXT = {"text": "w1 w2 w3"}
UNDER_WAY, WAITING = "hifi_inference_under_way", "hifi_inference_waiting"


def body(
    orders: Sequence[Mapping[str, Any]], items: Sequence[tuple[int, Given]], **change: Any
) -> dict[str, Any]:
    """Build a request body; an item is the index of its order and its input."""
    asked = [{"order": order, "input": dict(given)} for order, given in items]
    return {
        "orders": list(orders),
        "items": asked,
        "truncate": True,
        "timeout_seconds": WAIT,
        **change,
    }


def predict(
    client: TestClient,
    orders: Sequence[Mapping[str, Any]],
    items: Sequence[tuple[int, Given]],
    **change: Any,
) -> list[dict[str, Any]]:
    """Send a request; assert that it succeeds and return the answers."""
    response = client.post("/predict", json=body(orders, items, **change))
    assert response.status_code == 200, response.text
    answers = response.json()["data"]
    assert len(answers) == len(items)
    return answers


def ask(client: TestClient, order: Mapping[str, Any], *given: Given, **change: Any) -> list[dict]:
    """Request predictions of one head delta."""
    return predict(client, [order], [(0, each) for each in given], **change)


def codes(answers: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return the error code of each answer; None for a prediction."""
    return [answer.get("error", {"code": None})["code"] for answer in answers]


def measured(client: TestClient) -> dict[str, float]:
    """Scrape the metrics, keyed by name with labels."""
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def serve(home: Home, **update: Any) -> TestClient:
    """Return a client of a new application."""
    settings = home.settings.model_copy(update=update)
    return TestClient(build_app(settings), raise_server_exceptions=False)


def check_idle(client: TestClient) -> None:
    """Assert that no request is under way or waiting."""
    figures = measured(client)
    assert (figures[UNDER_WAY], figures[WAITING]) == (0, 0)


def distinct(home: Home, folder: Path, *, count: int) -> tuple[list[dict], list[Tuned]]:
    """Return orders for ``count`` head deltas of one layout, and the deltas."""
    tuned = [tune(folder, seed=100 + number) for number in range(count)]
    return [home.order(each) for each in tuned], tuned


class Background:
    """Runs a function in a thread; ``result`` returns or raises its outcome."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by result
            self._result = error

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(patience(60))
        assert not self._thread.is_alive()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


class HangingStorage(ArtifactStorage):
    """Counts the fetches; those of blobs in ``hanging`` wait for the gate."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fetched: list[str] = []
        self.hanging: set[str] = set()
        self.gate = threading.Event()

    def fetch(self, tenant_id: str, sha256: str, *, to: Path) -> None:
        self.fetched.append(sha256)
        if sha256 in self.hanging:
            assert self.gate.wait(patience(60))
        super().fetch(tenant_id, sha256, to=to)


class Gate:
    """A gate in front of every pass over a backbone; while closed it blocks the executor.

    Attributes:
        holds: whether a batch has to wait at the gate.
        passes: the names in each pass that has begun.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.holds: Callable[[Mapping[str, Any]], bool] = lambda _: True
        self.passes: list[list[str | None]] = []
        self._whole = HeadBank.fan_out

    def __call__(self, bank: HeadBank, batch: Any, names: Sequence[Sequence[str | None]]) -> Any:
        self.passes.append([name for row in names for name in row])
        assert not self.holds(batch) or self.open.wait(patience(60))
        return self._whole(bank, batch, names)
