"""Gateways for tests: settings, tenants with keys, and rows as workers would write them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import uvicorn
from starlette.testclient import TestClient

from service.app import build_app
from store.administration.keys import create_key
from store.database.connection import Database, database_now
from store.datasets import Split, add_dataset
from store.jobs.actions import NewJob, submit
from store.jobs.claims import Claimant, claim_next
from store.jobs.leases import Lease
from store.predictions import actions as predictions
from store.predictions.actions import NewPrediction
from store.predictions.claims import PredictionLease
from store.predictions.claims import claim_next as claim_prediction
from store.predictions.spec import PredictingJob, PredictionSpec
from store.settings import Settings
from store.states import JobStatus
from store.storage import ArtifactStorage, Blob
from store.tables import Backbone
from store.tenants import OwnQuotas, create_tenant
from tests.store.queues import MINILM

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MODEL = "minilm"
PROFILE = {
    "version": 1,
    "splits": {"train": 400, "validation": 40},
    "columns": [
        {
            "name": "text",
            "type": "string",
            "kind": "text",
            "cells": False,
            "classes": {"count": None},
        },
        {
            "name": "label",
            "type": "int64",
            "kind": "integer",
            "cells": False,
            "classes": {"count": 2},
        },
    ],
}
HOSTS = ("testserver", "127.0.0.1", "localhost")
CSV = b"text,label\n" + b"".join(b"row %d,%d\n" % (row, row % 2) for row in range(8))


def settings_for(home: Path, database_url: str, **changes: Any) -> Settings:
    """Make settings for a gateway that asks for keys and touches nothing outside ``home``."""
    values = {"home": home, "database_url": database_url, "auth": "keys", "allowed_hosts": HOSTS}
    return Settings(**{**values, **changes})


@dataclass(frozen=True)
class Member:
    """A tenant with a key."""

    tenant_id: str
    key_id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request by this tenant."""
        return {"Authorization": f"Bearer {self.secret}"}


def add_member(database: Database, name: str, *, is_admin: bool = False, **quotas: int) -> Member:
    """Add a tenant with a key."""
    with database.write() as session:
        tenant = create_tenant(session, name, is_admin=is_admin, own=OwnQuotas(**quotas))
        key, secret = create_key(session, tenant.id)
        return Member(tenant.id, key_id=key.id, secret=secret)


def add_backbone(database: Database, identifier: str = MODEL) -> str:
    """Add a backbone as a worker would."""
    with database.write() as session:
        session.add(
            Backbone(**{**vars(MINILM), "id": identifier}, updated_at=database_now(session))
        )
    return identifier


def upload(client: TestClient, member: Member, content: bytes = CSV, **fields: str) -> str:
    """Upload a small data set through the API; return its id."""
    answer = client.post(
        "/datasets", files={"train": ("train.csv", content)}, data=fields, headers=member.headers
    )
    assert answer.status_code == 201, answer.text
    identifier: str = answer.json()["id"]
    return identifier


def add_dataset_row(database: Database, member: Member, *, name: str | None = None) -> str:
    """Add a data set as an upload would, without its blobs; return its id."""
    blob = Blob(sha256="0" * 64, bytes=100)
    with database.write() as session:
        dataset = add_dataset(
            session,
            member.tenant_id,
            name=name,
            splits={"train": Split(blob=blob, rows=400), "validation": Split(blob=blob, rows=40)},
            columns={"text": "string", "label": "int64"},
            profile=PROFILE,
            max_bytes=1 << 40,
        )
        return dataset.id


def finished_job(database: Database, settings: Settings, member: Member) -> str:
    """Add a succeeded job with selection, result and artifacts; return its id."""
    new = NewJob(
        spec={},
        model=MODEL,
        revision=None,
        needs_hub=False,
        dataset_id=None,
        name="secret job",
        meta={},
    )
    with database.write() as session:
        job_id = submit(session, member.tenant_id, new, max_queued=9).id
    worker = Claimant(worker_id="worker-1", backbones=frozenset({MODEL}))
    claimed = claim_next(database, worker, lease_seconds=60, max_running=9)
    assert claimed is not None
    lease = Lease(database, job_id, fence=claimed.fence, seconds=60)
    lease.advance(JobStatus.TRAINING, message="training")
    lease.keep_selection(
        selection={"heads": [[0, 1]], "trainable_parameters": 1, "fraction": 0.5}, heads=_heads()
    )
    file = settings.home.parent / "delta"
    file.write_bytes(b"secret weights")
    blob = ArtifactStorage(settings.artifacts_url).put(member.tenant_id, file)
    result = {
        "metrics": {},
        "best_step": 1,
        "train_seconds": 1.0,
        "selection_seconds": 1.0,
        "samples_per_second": 1.0,
    }
    encodings = ("float32", "bfloat16", "int8", "lora")
    lease.succeed(result=result, artifacts=dict.fromkeys(encodings, blob))
    return job_id


def finished_prediction(
    database: Database, settings: Settings, member: Member, *, dataset: str, job: str
) -> str:
    """Add a succeeded batch prediction with its result; return its id."""
    answering = PredictingJob(id=job, type="classification", columns={"text": "text"})
    spec = PredictionSpec(split="train", format="jsonl", truncate=True, jobs=[answering])
    new = NewPrediction(
        name="secret prediction", dataset_id=dataset, spec=spec, total_rows=400, result_bytes=1
    )
    with database.write() as session:
        identifier = predictions.submit(
            session, member.tenant_id, new, max_queued=9, max_bytes=1 << 40
        ).id
    claimed = claim_prediction(database, lease_seconds=60, most_each=9)
    assert claimed is not None
    file = settings.home.parent / "answers"
    file.write_bytes(b"secret answers")
    blob = ArtifactStorage(settings.artifacts_url).put(member.tenant_id, file)
    PredictionLease(database, claimed, seconds=60).succeed(blob)
    return identifier


def _heads() -> dict[str, Any]:
    """Return the smallest heads document."""
    layer = {
        "layer": 0,
        "information_richness": [1],
        "correlation": [[1]],
        "importance": [1],
        "iterations": 1,
        "selected": [0],
    }
    return {
        "job": "job_x",
        "model": MODEL,
        "fingerprint": "sha256:0",
        "k": 1,
        "xi": 0.9,
        "d": 0.85,
        "strategy": "layer-wise",
        "teleport": "information",
        "n_samples": 1,
        "num_layers": 1,
        "num_heads": 1,
        "head_dim": 1,
        "trainable_parameters": 1,
        "fraction": 0.5,
        "layers": [layer],
    }


def job_spec(dataset: str, **changes: Any) -> dict[str, Any]:
    """Return a valid job spec."""
    return {"model": MODEL, "dataset": dataset, **changes}


def problem_of(answer: Any) -> dict[str, Any]:
    """Assert that an answer is a problem document of our form; return it."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = json.loads(answer.content)
    assert {"type", "title", "status", "detail", "code", "param", "request_id"} <= set(document)
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    assert answer.status_code < 500, document
    return document


class PromptServer(uvicorn.Server):
    """Ends within 10 ms; the stock one checks ten times a second whether it should."""

    async def main_loop(self) -> None:
        """Set the date header once, then wait for the end; do often what others do now and then."""
        await self.on_tick(0)
        while not self.should_exit:
            if self.config.callback_notify is not None:
                await self.config.callback_notify()
            await asyncio.sleep(0.01)


@contextmanager
def serving(app: ASGIApp, **options: Any) -> Iterator[uvicorn.Server]:
    """Serve an application from a thread."""
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", **options)
    server = PromptServer(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve an application on a free port; yield its URL."""
    with serving(app, host="127.0.0.1", port=0, timeout_graceful_shutdown=3) as server:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextmanager
def asked_and_left(
    url: str, *, headers: dict[str, str], method: str = "GET", body: Any = None
) -> Iterator[None]:
    """Send a request, and hang up at the end of the block without having read the answer."""
    request = httpx2.Request(method, url, headers=headers, json=body)
    lines = [f"{method} {request.url.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    with socket.create_connection((request.url.host, request.url.port)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
        yield


@contextmanager
def opened(settings: Settings) -> Iterator[TestClient]:
    """Start a gateway in this process; yield a client that gets its failures as responses."""
    with TestClient(build_app(settings), raise_server_exceptions=False) as client:
        yield client
