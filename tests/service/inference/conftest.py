"""A gateway with a fake inference process, and finished jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from store.storage import ArtifactStorage
from tests.service.gateways import served
from tests.service.inference.answers import items_of
from tests.service.predictors import Predictor
from tests.service.work import finished_job

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from starlette.types import Receive, Scope, Send

    from store.database.connection import Database
    from store.settings import Settings
    from tests.service.gateways import Member


class InferenceServer:
    """One server for all tests, since each takes 0.2 s to end; every test sets its predictor."""

    predictor = Predictor()
    url: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.predictor.app(scope, receive, send)


@pytest.fixture(scope="session")
def inference_server() -> Iterator[InferenceServer]:
    server = InferenceServer()
    with served(server) as server.url:
        yield server


@pytest.fixture(autouse=True)
def predictor(inference_server: InferenceServer) -> Predictor:
    inference_server.predictor = Predictor()
    return inference_server.predictor


@pytest.fixture
def settings(settings: Settings, inference_server: InferenceServer) -> Settings:
    """Return settings with a fake inference process."""
    return settings.model_copy(update={"infer_url": inference_server.url})


@pytest.fixture
def storage(settings: Settings) -> ArtifactStorage:
    return ArtifactStorage(settings.artifacts_url)


@pytest.fixture
def job_id(database: Database, storage: ArtifactStorage, alice: Member) -> str:
    return finished_job(database, storage, alice.tenant_id)


@pytest.fixture
def other_id(database: Database, storage: ArtifactStorage, alice: Member) -> str:
    return finished_job(database, storage, alice.tenant_id)


@pytest.fixture
def theirs(database: Database, storage: ArtifactStorage, bob: Member) -> str:
    """Return a job of another tenant."""
    return finished_job(database, storage, bob.tenant_id)


@pytest.fixture
def ask(client: TestClient, alice: Member, job_id: str):
    """Return a function that requests predictions of alice's job and returns the answers."""

    def ask(*inputs: Any, **options: Any) -> Any:
        body = {"inputs": list(inputs), **options}
        answer = client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)
        return items_of(answer, count=len(inputs))

    return ask


@pytest.fixture
def mix(client: TestClient, alice: Member):
    """Return a function that requests predictions of any jobs and returns the answers."""

    def mix(*inputs: Any, member: Member = alice, **options: Any) -> Any:
        answer = client.post(
            "/predict", json={"inputs": list(inputs), **options}, headers=member.headers
        )
        return items_of(answer, count=len(inputs))

    return mix
