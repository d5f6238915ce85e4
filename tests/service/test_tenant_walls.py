"""No route shows a tenant anything of another tenant: it answers 404.

The tests walk the table of routes. A new route is in none of the lists below and fails them until
somebody says what of a tenant's it could show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from service.app import build_app
from service.http.auth import administrator, is_public
from store.states import JobStatus
from tests.service.gateways import (
    CSV,
    add_dataset_row,
    finished_job,
    finished_prediction,
    job_spec,
    problem_of,
)

# Parameters of paths that name a tenant's own thing, and one that names none.
OWNED = {
    "job_id": "job_0000000000000000000missing",
    "dataset_id": "ds_0000000000000000000missing",
    "key_id": "key_0000000000000000000missing",
    "prediction_id": "pred_0000000000000000000missing",
}
LISTS = {"/jobs", "/datasets", "/predictions"}
# Backbones are the server's, documents about the API are everybody's. Everybody has keys: a test of
# its own says whose are listed.
SHARED = {"/models", "/openapi.json", "/keys"}
# What they read is in the body; tests of their own say what they must not show.
POSTS = {("POST", path) for path in ("/jobs", "/datasets", "/predict", "/predictions")}


@pytest.fixture
def owned(database, settings, alice) -> dict[str, str]:
    """Return what alice owns: a data set, and a job with everything that a job can have."""
    dataset = add_dataset_row(database, alice, name="secret set")
    job = finished_job(database, settings, alice)
    prediction = finished_prediction(database, settings, alice, dataset=dataset, job=job)
    return {
        "dataset_id": dataset,
        "job_id": job,
        "key_id": alice.key_id,
        "prediction_id": prediction,
    }


def asks_administrator(dependant: Any) -> bool:
    return dependant.call is administrator or any(map(asks_administrator, dependant.dependencies))


def guarded_routes(settings) -> Iterator[tuple[str, str, set[str]]]:
    """Return method, path and path parameters of all routes for non-administrators."""
    for route in iter_route_contexts(build_app(settings).routes):
        if is_public(route.endpoint) or asks_administrator(route.dependant):
            continue
        for method in route.methods:
            yield method, route.path, {field.name for field in route.dependant.path_params}


class TestRoutes:
    def test_none_is_forgotten(self, settings):
        routes = list(guarded_routes(settings))
        assert len(routes) > 15
        for method, path, parameters in routes:
            is_list = method == "GET" and path in LISTS | SHARED
            assert (
                (parameters and parameters <= set(OWNED)) or is_list or (method, path) in POSTS
            ), f"say in this file what {method} {path} must not show of another tenant"

    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
    def test_another_tenants_id_is_not_found(self, client, settings, bob, owned, accept):
        asked = 0
        for method, path, parameters in guarded_routes(settings):
            if not parameters:
                continue
            there = {name: owned[name] for name in parameters}
            missing = {name: OWNED[name] for name in parameters}
            answers = []
            for values in (there, missing):
                headers = {**bob.headers, "accept": accept}
                body = {} if path.endswith("/replace") else None
                answer = client.request(method, path.format_map(values), headers=headers, json=body)
                assert answer.status_code == 404, (method, path)
                if method != "HEAD":
                    problem = problem_of(answer)
                    text = problem["detail"]
                    for value in values.values():
                        text = text.replace(value, "ID")
                    answers.append({**problem, "detail": text, "request_id": None})
            assert answers[:1] == answers[1:]
            asked += 1
        assert asked > 10

    def test_they_do_show_it_to_its_owner(self, client, settings, alice, owned):
        # Or the test before would prove nothing.
        for method, path, parameters in guarded_routes(settings):
            if parameters and method in {"GET", "HEAD"}:
                answer = client.request(method, path.format_map(owned), headers=alice.headers)
                # The inference process is not there, which merges models.
                assert answer.status_code == (503 if path.endswith("/merged") else 200), path


class TestLists:
    @pytest.mark.usefixtures("owned")
    @pytest.mark.parametrize("path", sorted(LISTS))
    def test_hold_nothing_of_another(self, client, alice, bob, path):
        assert len(client.get(path, headers=alice.headers).json()["data"]) == 1
        filters = ["", "?limit=100"]
        if path == "/jobs":
            filters += [f"?status={status}" for status in JobStatus]
        for query in filters:
            page = client.get(path + query, headers=bob.headers).json()
            assert (page["data"], page["first_id"], page["has_more"]) == ([], None, False)

    @pytest.mark.parametrize("path", sorted(LISTS))
    def test_do_not_continue_after_another_tenants_row(self, client, bob, owned, path):
        kind = {
            "/jobs": "job_id",
            "/datasets": "dataset_id",
            "/predictions": "prediction_id",
        }[path]
        there, missing = (
            problem_of(client.get(f"{path}?after={after}", headers=bob.headers))
            for after in (owned[kind], OWNED[kind])
        )
        assert there["status"] == missing["status"] == 404
        assert there["detail"].replace(owned[kind], "") == missing["detail"].replace(
            OWNED[kind], ""
        )


class TestBodies:
    @pytest.mark.parametrize("query", ["", "?dry_run=true"])
    @pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}])
    def test_a_job_cannot_use_anothers_data(self, client, bob, owned, query, key):
        def post(dataset: str) -> dict[str, Any]:
            return problem_of(
                client.post(f"/jobs{query}", json=job_spec(dataset), headers=bob.headers | key)
            )

        there, missing = post(owned["dataset_id"]), post(OWNED["dataset_id"])
        assert there["status"] == missing["status"] == 404
        assert there["param"] == missing["param"] == "dataset"
        detail = there["detail"].replace(owned["dataset_id"], OWNED["dataset_id"])
        assert detail == missing["detail"]

    def test_an_idempotency_key_reveals_nothing(self, client, alice, bob, owned):
        key = {"Idempotency-Key": "shared"}
        spec = job_spec(owned["dataset_id"])
        assert client.post("/jobs", json=spec, headers=alice.headers | key).status_code == 202
        answer = client.post("/jobs", json=spec, headers=bob.headers | key)
        assert problem_of(answer)["status"] == 404

    @pytest.mark.process
    def test_the_same_upload_reveals_nothing(self, client, alice, bob):
        answers = [
            client.post(
                "/datasets",
                files={"train": ("a.csv", CSV)},
                headers={**member.headers, "Idempotency-Key": "shared"},
            )
            for member in (alice, bob)
        ]
        assert [answer.status_code for answer in answers] == [201, 201]
        first, second = (answer.json() for answer in answers)
        assert first["id"] != second["id"]
        assert first["sha256"] == second["sha256"]
        answer = client.get(f"/datasets/{first['id']}", headers=bob.headers)
        assert problem_of(answer)["status"] == 404

    def test_a_prediction_cannot_use_anothers_job(self, client, bob, owned):
        def ask(job: str) -> dict[str, Any]:
            inputs = [{"job": job, "input": {"text": "a text"}}]
            answer = client.post("/predict", json={"inputs": inputs}, headers=bob.headers)
            assert answer.status_code == 200
            (item,) = answer.json()["data"]
            assert item.pop("job") == job
            return item

        there, missing = ask(owned["job_id"]), ask(OWNED["job_id"])
        assert there["error"]["code"] == missing["error"]["code"] == "not_found"
        message = there["error"]["message"].replace(owned["job_id"], OWNED["job_id"])
        assert {**there, "error": {**there["error"], "message": message}} == missing
