"""service.http.tables: a gateway whose tables are changed under it refuses, and recovers."""

from __future__ import annotations

import json
import secrets

import pytest

from service.http import tables
from store.database.connection import Database
from store.database.schema import downgrade, upgrade
from tests.service.gateways import add_member, opened, settings_for

BEFORE = "0001"


@pytest.fixture(params=["sqlite", "postgres"])
def changing(request, tmp_path, monkeypatch):
    """Yield a gateway whose tables a test may change, the URL of the tables, and a tenant."""
    monkeypatch.setattr(tables, "_WAIT_SECONDS", 30.0)  # so that a loaded machine decides nothing
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    upgrade(url)
    database = Database(url)
    member = add_member(database, secrets.token_hex(8))  # the Postgres tables are shared
    database.close()
    with opened(settings_for(tmp_path / "home", url)) as client:
        yield client, url, member


def refusal(answer) -> dict:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = json.loads(answer.content)
    assert (answer.status_code, problem["code"]) == (503, "tables_version"), problem
    assert "hifi migrate" in problem["detail"]
    assert int(answer.headers["retry-after"]) > 0
    return problem


class TestTablesOfAnotherVersion:
    @pytest.mark.parametrize("valid_seconds", [0.0, 3600.0])
    def test_are_refused_at_once_and_used_again_when_they_fit(
        self, changing, monkeypatch, valid_seconds
    ):
        client, url, member = changing
        # With the long time only failing queries find out.
        monkeypatch.setattr(tables, "_VALID_SECONDS", valid_seconds)
        assert client.get("/jobs", headers=member.headers).status_code == 200
        downgrade(url, BEFORE)
        refusal(client.get("/jobs", headers=member.headers))
        for method, path in (("GET", "/jobs/job_x"), ("GET", "/models"), ("GET", "/datasets")):
            refusal(client.request(method, path, headers=member.headers))
        refusal(
            client.post("/jobs", json={"model": "m", "dataset": "ds_1"}, headers=member.headers)
        )
        assert client.get("/healthz").status_code == 200
        assert refusal(client.get("/readyz"))["failing"] == ["tables"]
        upgrade(url)
        monkeypatch.setattr(tables, "_VALID_SECONDS", 0.0)
        for _ in range(3):
            assert client.get("/jobs", headers=member.headers).status_code == 200

    def test_a_database_that_is_away_is_no_other_version(self, changing, monkeypatch):
        client, _, member = changing
        monkeypatch.setattr(tables, "_VALID_SECONDS", 0.0)

        def fail(_: object) -> None:
            raise tables.OUTAGES[0]("SELECT", {}, Exception("gone"))

        monkeypatch.setattr(tables, "check", fail)
        assert client.get("/jobs", headers=member.headers).status_code == 200
