"""Requests that the OpenAPI document allows, and invalid ones, get the documented answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.python.asgi import shutdown_lifespans
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.app import build_app
from service.http import auth
from store.database.connection import Database
from store.orders import MAX_INPUTS
from tests.service.gateways import (
    MODEL,
    Member,
    add_backbone,
    add_dataset_row,
    add_member,
    finished_job,
    finished_prediction,
    served,
    settings_for,
)

if TYPE_CHECKING:
    from fastapi import FastAPI
    from schemathesis import BaseSchema, Case, HookContext
    from starlette.requests import Request

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
CONFIG = {
    "generation": {"max-examples": 12, "deterministic": True, "mode": "all"},
    "checks": {
        # A document that fits its schema may still speak of a model or a column that is not there.
        "positive_data_acceptance": {"enabled": False},
    },
}


OUTCOMES = (
    {"label": "a", "score": 0.75, "scores": {"a": 0.75, "b": 0.25}},
    {"value": -1.5},
    {"error": {"code": "text_too_long", "message": "600 tokens", "param": "text"}},
)


class Inference:
    """Stands in for the inference process, which merges and predicts."""

    def __init__(self) -> None:
        self.is_overloaded = False
        self.app = Starlette(
            routes=[
                Route("/merged", self._merge, methods=["POST"]),
                Route("/predict", self._predict, methods=["POST"]),
            ]
        )

    def _merge(self, _request: Request) -> Response:
        return Response(status_code=500) if self.is_overloaded else Response(b"tar")

    async def _predict(self, request: Request) -> Response:
        if self.is_overloaded:
            return Response(status_code=500)
        items = (await request.json())["items"]
        answers = zip(items, cycle(OUTCOMES), strict=False)
        return JSONResponse({"data": [outcome for _, outcome in answers]})


@dataclass(frozen=True)
class Gateway:
    """A gateway with an administrator who has a data set, a finished job and a prediction."""

    app: FastAPI
    inference: Inference
    member: Member
    ids: dict[str, str]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("schemathesis")
    shutil.copyfile(migrated_sqlite, folder / "hifi.db")
    inference = Inference()
    with served(inference.app) as infer_url:
        settings = settings_for(folder / "home", f"sqlite:///{folder}/hifi.db", infer_url=infer_url)
        database = Database(settings.database_url)
        add_backbone(database)
        member = add_member(database, "root", is_admin=True)
        dataset = add_dataset_row(database, member)
        job = finished_job(database, settings, member)
        ids = {
            "tenant_id": member.tenant_id,
            "dataset_id": dataset,
            "job_id": job,
            "prediction_id": finished_prediction(
                database, settings, member, dataset=dataset, job=job
            ),
            "key_id": add_member(database, "other").key_id,  # to be replaced and revoked
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auth, "_MOST_FAILURES", 1_000_000)  # a third of the requests has no key
            yield Gateway(build_app(settings), inference=inference, member=member, ids=ids)
            shutdown_lifespans()
        database.close()


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> BaseSchema:
    """Read the gateway's OpenAPI document."""
    config = SchemathesisConfig.from_dict(CONFIG)
    document = schemathesis.openapi.from_dict(gateway.app.openapi(), config=config)
    document.app = gateway.app
    document.hook(filter_query)
    return document


def filter_query(_context: HookContext, query: dict[str, object] | None) -> bool:
    """Skip cases that no server can refuse: a parameter that is not sent, such as an empty list."""
    return all(is_sent(value) for value in (query or {}).values())


def is_sent(value: object) -> bool:
    if isinstance(value, list | dict):
        return any(is_sent(item) for item in value)
    return value is not None


# Cases are made when a test runs, for all calls in turn: made when tests are collected, they would
# cost every run seconds in each process, also a run of other tests.
DOCUMENT = schemathesis.pytest.from_fixture("document")


@DOCUMENT.parametrize()
def test_every_answer_is_as_documented(case: Case, gateway: Gateway) -> None:
    case.call_and_validate(headers=gateway.member.headers)


@DOCUMENT.exclude(method="DELETE").exclude(path="/datasets", method="POST").parametrize()
def test_answers_about_existing_objects_are_as_documented(case: Case, gateway: Gateway) -> None:
    for name in case.path_parameters or {}:
        case.path_parameters[name] = gateway.ids[name]
    if case.path == "/jobs" and isinstance(case.body, dict):
        case.body = {**case.body, "model": MODEL, "dataset": gateway.ids["dataset_id"]}
    if case.path == "/predict" and is_good(case.body):
        named = {"job": gateway.ids["job_id"], "input": {"text": "a text"}}
        case.body = {**case.body, "inputs": [named, *case.body["inputs"][1:], named]}
    if case.path == "/predictions" and isinstance(case.body, dict):
        own = {"dataset": gateway.ids["dataset_id"], "jobs": [gateway.ids["job_id"]]}
        case.body = {**case.body, **own}
    case.call_and_validate(headers=gateway.member.headers)


def is_good(body: object) -> bool:
    """Return whether a `/predict` body has items that stay valid with one more item."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    return isinstance(inputs, list) and 0 < len(inputs) < MAX_INPUTS


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/jobs/{job_id}/merged", "GET", None),
        ("/jobs/{job_id}/predict", "POST", {"inputs": [{"text": "a text"}]}),
    ],
)
def test_answers_are_as_documented_when_inference_fails(
    document: BaseSchema, gateway: Gateway, path: str, method: str, body: object
) -> None:
    sent = {} if body is None else {"body": body, "media_type": "application/json"}
    case = document[path][method].Case(path_parameters={"job_id": gateway.ids["job_id"]}, **sent)
    gateway.inference.is_overloaded = True
    try:
        answer = case.call(headers=gateway.member.headers)
    finally:
        gateway.inference.is_overloaded = False
    assert answer.status_code == 503
    case.validate_response(answer, excluded_checks=[not_a_server_error])
