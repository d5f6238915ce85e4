"""store.orders as the inference process reads them: the accepted fields of an order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.inference.asking import body, codes, predict
from tests.worker.inference.conftest import order_of
from tests.worker.inference.test_app import check_problem

if TYPE_CHECKING:
    from starlette.testclient import TestClient

ORDER = order_of("0" * 64)
TEXT = {"text": "w1"}


def refused(client: TestClient, content: dict[str, Any] | bytes, status: int = 422) -> Any:
    """Assert that a request is refused as a whole; return the field at fault."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post("/predict", content=raw)
    check_problem(response, status, "body_too_large" if status == 413 else "invalid_request")
    return response.json()["param"]


class TestPredictionRequest:
    @pytest.mark.parametrize("count", [0, 257])
    def test_of_too_few_or_too_many(self, client: TestClient, count: int):
        assert refused(client, body([ORDER], [(0, TEXT)] * count)) == "items"
        assert refused(client, body([ORDER] * count, [(0, TEXT)])) == "orders"

    def test_of_the_maximum_is_accepted(self, client: TestClient):
        assert codes(predict(client, [ORDER] * 256, [(0, TEXT)] * 256)) == ["blob_lost"] * 256

    @pytest.mark.parametrize("place", [1, 256, 2**70])
    def test_of_a_missing_order(self, client: TestClient, place: int):
        assert refused(client, body([ORDER], [(place, TEXT)])) in (None, "items.0.order")

    @pytest.mark.parametrize("place", [-1, 0.5, "0", True, None])
    def test_of_an_invalid_order_index(self, client: TestClient, place: Any):
        assert refused(client, body([ORDER], [(place, TEXT)])) == "items.0.order"

    @pytest.mark.parametrize(
        "seconds", [0, -1, 300.5, 1e300, float("nan"), float("inf"), "3", True, None]
    )
    def test_of_an_invalid_timeout(self, client: TestClient, seconds: Any):
        asked = body([ORDER], [(0, TEXT)], timeout_seconds=seconds)
        assert refused(client, json.dumps(asked).encode()) == "timeout_seconds"

    @pytest.mark.parametrize("truncate", [None, 0, "yes"])
    def test_of_an_invalid_truncate(self, client: TestClient, truncate: Any):
        assert refused(client, body([ORDER], [(0, TEXT)], truncate=truncate)) == "truncate"

    @pytest.mark.parametrize("name", ["text", "text_pair"])
    def test_of_a_text_that_is_too_long(self, client: TestClient, name: str):
        for letters, expected in ((100_000, ["blob_lost"]), (100_001, None)):
            asked = [(0, {**TEXT, name: "ä" * letters})]
            if expected is None:
                assert refused(client, body([ORDER], asked)) == f"items.0.input.{name}"
            else:
                assert codes(predict(client, [ORDER], asked)) == expected

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({"text": 5}, "items.0.input.text"),
            ({"text": ["w1"]}, "items.0.input.text"),
            ({"image": {}}, "items.0.input.image"),
            ({"words": "w1"}, "items.0.input.words"),
            ("w1", "items.0.input"),
            (None, "items.0.input"),
        ],
    )
    def test_of_an_invalid_input(self, client: TestClient, given: Any, param: str):
        asked = {**body([ORDER], []), "items": [{"order": 0, "input": given}]}
        assert refused(client, asked) == param

    @pytest.mark.parametrize(
        "change",
        [
            *({"tenant": value} for value in ("../x", "", "a/b", 5, None)),
            *({"sha256": value} for value in ("../../x", "0" * 63, "G" * 64, None)),
            *({"model": value} for value in ("../x", "/etc", "a\0b", "", None)),
            {"path": "/etc"},
        ],
    )
    def test_of_an_invalid_order(self, client: TestClient, change: dict):
        asked = body([{**ORDER, **change}], [(0, TEXT)])
        assert refused(client, asked) == f"orders.0.{next(iter(change))}"

    def test_of_unknown_fields(self, client: TestClient):
        assert refused(client, body([ORDER], [(0, TEXT)], priority=9)) == "priority"

    @pytest.mark.parametrize("name", ["orders", "items", "truncate", "timeout_seconds"])
    def test_of_fields_that_are_missing(self, client: TestClient, name: str):
        asked = body([ORDER], [(0, TEXT)])
        del asked[name]
        assert refused(client, asked) == name

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null", b'{"items":' * 5_000]
    )
    def test_of_no_json(self, client: TestClient, content: bytes):
        refused(client, content)

    def test_of_a_lone_surrogate(self, client: TestClient):
        content = json.dumps(body([ORDER], [(0, {"text": "\ud800"})])).encode()
        refused(client, content)

    def test_that_is_too_large(self, client: TestClient):
        refused(client, b" " * ((32 << 20) + 1), status=413)

    def test_errors_do_not_quote_the_input(self, client: TestClient):
        content = json.dumps(body([ORDER], [(0, {"text": "w1", "secret": "sesame"})])).encode()
        assert "sesame" not in client.post("/predict", content=content).text
