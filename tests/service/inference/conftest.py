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

    from store.database.connection import Database
    from store.settings import Settings
    from tests.service.gateways import Member


@pytest.fixture
def predictor() -> Predictor:
    return Predictor()


@pytest.fixture
def settings(settings: Settings, predictor: Predictor) -> Iterator[Settings]:
    """Yield settings with a fake inference process."""
    with served(predictor.app) as url:
        yield settings.model_copy(update={"infer_url": url})


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
