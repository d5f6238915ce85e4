"""Whatever the OpenAPI document allows, and what it does not, is answered as it says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.python.asgi import shutdown_lifespans

from service.app import build_app
from store.database import Database
from tests.service.gateways import (
    MODEL,
    Member,
    add_backbone,
    add_dataset_row,
    add_member,
    finished_job,
    settings_for,
)

if TYPE_CHECKING:
    from schemathesis import BaseSchema, Case
    from starlette.types import ASGIApp, Receive, Scope, Send

CONFIG = {
    "generation": {"max-examples": 12, "deterministic": True, "mode": "all"},
    "checks": {
        # A document that fits its schema may still speak of a model or a column that is not there.
        "positive_data_acceptance": {"enabled": False},
    },
}


class Gateway:
    """Stands for the gateway while tests are collected; a fixture opens one behind it."""

    app: ASGIApp
    member: Member
    ids: dict[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def describe(gateway: Gateway) -> BaseSchema:
    """Read the document; the application that writes it opens nothing."""
    app = build_app(settings_for(Path("unused"), "sqlite:///unused"))
    config = SchemathesisConfig.from_dict(CONFIG)
    schema = schemathesis.openapi.from_dict(app.openapi(), config=config)
    schema.app = gateway
    return schema


GATEWAY = Gateway()
DOCUMENT = describe(GATEWAY)


@pytest.fixture(scope="module", autouse=True)
def gateway(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    """Open a gateway with an administrator who has a data set and a finished job."""
    folder = tmp_path_factory.mktemp("schemathesis")
    shutil.copyfile(migrated_sqlite, folder / "hifi.db")
    settings = settings_for(folder / "home", f"sqlite:///{folder}/hifi.db")
    database = Database(settings.database_url)
    add_backbone(database)
    member = add_member(database, "root", is_admin=True)
    GATEWAY.member = member
    GATEWAY.ids = {
        "tenant_id": member.tenant_id,
        "dataset_id": add_dataset_row(database, member),
        "job_id": finished_job(database, settings, member),
    }
    GATEWAY.app = build_app(settings)
    yield GATEWAY
    shutdown_lifespans()
    database.close()


@DOCUMENT.parametrize()
def test_every_answer_is_as_documented(case: Case) -> None:
    case.call_and_validate(headers=GATEWAY.member.headers)


# Nor is the inference process there, which merges.
@(
    DOCUMENT.exclude(method="DELETE")
    .exclude(path="/datasets", method="POST")
    .exclude(path="/jobs/{job_id}/merged")
    .parametrize()
)
def test_so_it_is_for_what_is_there(case: Case) -> None:
    for name in case.path_parameters or {}:
        case.path_parameters[name] = GATEWAY.ids[name]
    if case.path == "/jobs" and isinstance(case.body, dict):
        case.body = {**case.body, "model": MODEL, "dataset": GATEWAY.ids["dataset_id"]}
    case.call_and_validate(headers=GATEWAY.member.headers)
