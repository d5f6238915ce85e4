"""service.http.auth: every route requires a key, except the public ones."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from service.app import build_app
from service.http import auth
from service.http.auth import is_public
from store.tenants import list_tenants
from tests.service.gateways import opened, problem_of, served, settings_for

PUBLIC = {"/healthz", "/readyz", "/", "/docs", "/static/{name}"}


def routes(settings):
    return list(iter_route_contexts(build_app(settings).routes))


class TestRoutes:
    def test_all_are_api_routes(self, settings):
        # A mounted application or a plain Starlette route would pass by the dependencies.
        assert {type(route.original_route) for route in routes(settings)} == {APIRoute}

    def test_public_are_those_of_the_contract_alone(self, settings):
        public = {route.path for route in routes(settings) if is_public(route.endpoint)}
        assert public == PUBLIC

    def test_all_others_answer_401_without_a_key(self, settings, client):
        asked = 0
        for route in routes(settings):
            if is_public(route.endpoint):
                continue
            path = route.path.format_map(AnyId())
            for method in route.methods:
                answer = client.request(method, path)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                if method != "HEAD":
                    assert problem_of(answer)["code"] == "unauthorized"
                asked += 1
        assert asked > 20

    def test_public_ones_answer_without(self, client):
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200


class AnyId(dict):
    def __missing__(self, name: str) -> str:
        return "x_1"


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            *("", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer hifi_wrong", "Token {}"),
            *("Bearer {}x", "Bearer {} {}", "Bearer \xe9\xff", "Bearer " + "x" * 10_000),
        ],
    )
    def test_wrong_ones_are_refused(self, client, alice, header):
        given = header.format(alice.secret, alice.secret).encode("latin-1")
        problem = problem_of(client.get("/jobs", headers={"Authorization": given}))
        assert (problem["status"], problem["code"]) == (401, "unauthorized")
        assert alice.secret not in str(problem)

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_scheme_is_written_in_any_case(self, client, alice, scheme):
        headers = {"Authorization": f"{scheme} {alice.secret}"}
        assert client.get("/jobs", headers=headers).status_code == 200

    def test_a_wrong_key_differs_from_a_missing_one(self, client):
        wrong = client.get("/jobs", headers={"Authorization": "Bearer hifi_wrong"})
        assert "invalid_token" in wrong.headers["www-authenticate"]
        assert client.get("/jobs").headers["www-authenticate"] == "Bearer"


class TestTrying:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        monkeypatch.setattr(auth, "_MOST_FAILURES", 3)

    def try_keys(self, client, count):
        return [
            client.get("/jobs", headers={"Authorization": f"Bearer hifi_{number}"})
            for number in range(count)
        ]

    def test_many_invalid_keys_of_an_address_are_refused_for_a_while(self, client, monkeypatch):
        answers = self.try_keys(client, 5)
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        problem = problem_of(answers[-1])
        assert problem["code"] == "too_many_attempts"
        assert "more than 3 invalid keys" in problem["detail"]
        assert answers[-1].headers["retry-after"] == "60"
        later = time.monotonic() + 61
        monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: later))
        assert self.try_keys(client, 1)[0].status_code == 401

    def test_valid_ones_of_that_address_stay_valid(self, client, alice):
        self.try_keys(client, 5)
        assert client.get("/jobs", headers=alice.headers).status_code == 200

    def test_a_missing_key_is_no_attempt(self, client):
        assert {client.get("/jobs").status_code for _ in range(9)} == {401}


class TestWithoutKeys:
    def test_all_are_the_tenant_default_and_administer(self, tmp_path, sqlite_url):
        settings = settings_for(tmp_path / "home", sqlite_url, auth="none")
        with opened(settings) as client:
            (tenant,) = client.get("/tenants").json()["data"]
            assert (tenant["name"], tenant["is_admin"]) == ("default", True)
            assert client.get("/jobs", headers={"Authorization": "Bearer x"}).status_code == 200
            assert client.get("/metrics").status_code == 200

    def test_gateways_that_start_at_once_share_it(self, tmp_path, sqlite_url, database):
        settings = settings_for(tmp_path / "home", sqlite_url, auth="none")

        def start(_: int) -> None:
            with served(build_app(settings)):
                pass

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(start, range(3)))
        with database.read() as session:
            (tenant,) = list_tenants(session, after=None, limit=9).rows
        assert tenant.name == "default"
