"""worker.inference.metrics, through the application: the numbers are right, and asked for."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from store.errors import ProblemError
from store.resources import turns
from tests.worker.inference.asking import ask, body, measured, predict
from tests.worker.inference.conftest import order_of
from tests.worker.inference.test_app import check_problem
from tests.worker.inference.tuned import Tuned, tune
from worker.inference.app import build_app

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home


def _refuse(*_: object) -> None:
    raise ProblemError("too_many_requests", status=HTTPStatus.TOO_MANY_REQUESTS, detail="full")


TEXT, OTHER = {"text": "w1 w2 w3"}, {"text": "w3 w2 w1"}  # five tokens
NAME = "hifi_inference_"


class TestMetrics:
    def test_count_the_outcomes_of_inputs(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        orders = [home.order(tasks["two"]), order_of("0" * 64)]
        predict(client, orders, [(0, TEXT), (0, {"text": ""}), (1, TEXT), (0, OTHER)])
        ask(client, orders[0], TEXT)
        figures = measured(client)
        outcomes = {"answered": 3, "invalid_input": 1, "blob_lost": 1}
        for outcome, count in outcomes.items():
            assert figures[f'{NAME}predictions_total{{outcome="{outcome}"}}'] == count
        assert figures[f"{NAME}request_duration_seconds_count"] == 2
        assert figures[f"{NAME}batch_samples_count"] >= 2
        assert figures[f"{NAME}batch_samples_sum"] == 3
        assert figures[f"{NAME}batch_tokens_sum"] == 15
        assert figures[f"{NAME}under_way"] == figures[f"{NAME}waiting"] == 0

    def test_count_refused_requests(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned], monkeypatch
    ):
        monkeypatch.setattr(turns.Places, "take", _refuse)
        items = [(0, TEXT)] * 3
        response = client.post("/predict", json=body([home.order(tasks["two"])], items))
        check_problem(response, 429, "too_many_requests")
        figures = measured(client)
        assert figures[f'{NAME}predictions_total{{outcome="too_many_requests"}}'] == 3

    def test_show_the_tiers(self, client: TestClient, home: Home, backbone: Path):
        tuned = [tune(backbone, seed=seed) for seed in range(3)]
        orders = [home.order(each) for each in tuned]
        predict(client, orders, [(place, TEXT) for place in range(3)])
        figures = measured(client)
        on_disk = list((home.settings.home / "inference").glob("*/deltas/*/*"))
        assert figures[f'{NAME}deltas{{tier="disk"}}'] == len(on_disk) == 3
        size = sum(file.stat().st_size for file in on_disk)
        assert figures[f'{NAME}delta_bytes{{tier="disk"}}'] == size
        assert figures[f'{NAME}deltas{{tier="device"}}'] == 3
        assert 0 < figures[f'{NAME}delta_bytes{{tier="device"}}'] < size
        assert figures[f'{NAME}deltas{{tier="host"}}'] == 0  # on a CPU

    def test_are_what_prometheus_reads(self, client: TestClient):
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(response.text)}
        assert {f"{NAME}predictions", f"{NAME}deltas", "process_resident_memory_bytes"} <= families


class TestToken:
    @pytest.fixture
    def home(self, home: Home) -> Home:
        named = type(home.settings)(
            home=home.settings.home,
            models=home.settings.models,
            device="cpu",
            infer_token="sesame",  # noqa: S106 - the test's own
        )
        return replace(home, settings=named)

    def test_is_required(self, home: Home, order: dict):
        allowed = {"Authorization": "Bearer sesame"}
        content = body([order], [(0, TEXT)])
        with TestClient(build_app(home.settings)) as client:
            check_problem(client.get("/metrics"), 401, "unauthorized")
            check_problem(client.post("/predict", json=content), 401, "unauthorized")
            check_problem(client.post("/predict", content=b"nonsense"), 401, "unauthorized")
            assert client.get("/metrics", headers=allowed).status_code == 200
            assert client.post("/predict", json=content, headers=allowed).status_code == 200
            assert client.get("/healthz").json() == {"status": "ok"}
