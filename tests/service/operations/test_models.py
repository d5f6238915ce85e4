"""GET /models: the backbones, and the models that no job can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from store.jobs.workers import change_offer, register
from tests.store.queues import MINILM

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from store.database.connection import Database
    from tests.service.gateways import Member


def test_unusable_models_are_listed_apart_from_the_backbones(
    client: TestClient, database: Database, alice: Member
):
    register(database, worker_id="w", device="cpu", backbones=[], allows_hub=False)
    unusable = {"status": "unusable", "reason": "it has no tokenizer"}
    reading = {"status": "reading", "reason": "a worker is reading it"}
    change_offer(database, "w", backbones=[MINILM], unavailable={"t5": unusable, "new": reading})
    document = client.get("/models", headers=alice.headers).json()
    assert [entry["id"] for entry in document["data"]] == ["minilm"]
    assert document["unavailable"] == [{"id": "new", **reading}, {"id": "t5", **unusable}]


def test_without_workers_the_list_is_empty(client: TestClient, alice: Member, database: Database):
    register(database, worker_id="w", device="cpu", backbones=[], allows_hub=False)
    change_offer(database, "w", backbones=[], unavailable={})
    document = client.get("/models", headers=alice.headers).json()
    assert (document["data"], document["unavailable"]) == ([], [])
