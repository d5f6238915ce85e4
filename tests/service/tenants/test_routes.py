"""service.tenants.routes: for administrators only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from store.jobs.actions import submit
from tests.service.gateways import add_dataset_row, job_spec, problem_of
from tests.store.queues import NEW

ADMINISTRATIVE = [
    ("POST", "/tenants"),
    ("GET", "/tenants"),
    ("PATCH", "/tenants/{tenant}"),
    ("POST", "/tenants/{tenant}/keys"),
    ("GET", "/tenants/{tenant}/keys"),
    ("GET", "/tenants/{tenant}/usage"),
    ("DELETE", "/keys/{key}"),
    ("GET", "/metrics"),
]


class TestAdministrators:
    @pytest.mark.parametrize(("method", "path"), ADMINISTRATIVE)
    def test_other_tenants_are_refused(self, client, alice, bob, method, path):
        there = path.format(tenant=bob.tenant_id, key=bob.key_id)
        missing = path.format(tenant="ten_missing", key="key_missing")
        strange = path.format(tenant="%00", key="%00")
        answers = [
            problem_of(client.request(method, url, headers=alice.headers, json={}))
            for url in (there, missing, strange)
        ]
        for answer in answers:
            assert (answer["status"], answer["code"]) == (403, "forbidden")
            assert answer["detail"] == answers[0]["detail"]

    @pytest.mark.parametrize(("method", "path"), ADMINISTRATIVE)
    def test_a_missing_key_is_refused(self, client, method, path):
        url = path.format(tenant="ten_missing", key="key_missing")
        assert problem_of(client.request(method, url))["status"] == 401


class TestTenants:
    def test_are_added_and_listed_newest_first(self, client, admin):
        new = {"name": "search", "max_queued": 5, "max_bytes": 1000}
        answer = client.post("/tenants", json=new, headers=admin.headers)
        assert answer.status_code == 201
        tenant = answer.json()
        assert tenant["object"] == "tenant"
        assert (tenant["name"], tenant["is_admin"]) == ("search", False)
        assert tenant["quotas"] == {"max_queued": 5, "max_running": 16, "max_bytes": 1000}
        listed = client.get("/tenants?limit=1", headers=admin.headers).json()
        assert listed["data"] == [tenant]
        assert (listed["has_more"], listed["first_id"]) == (True, tenant["id"])
        rest = client.get(f"/tenants?after={tenant['id']}", headers=admin.headers).json()
        assert [other["id"] for other in rest["data"]] == [admin.tenant_id]

    def test_a_name_is_taken_once(self, client, admin):
        def add(_: int) -> int:
            answer = client.post("/tenants", json={"name": "search"}, headers=admin.headers)
            return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(add, range(8))) == [201] + [409] * 7
        problem = problem_of(
            client.post("/tenants", json={"name": "search"}, headers=admin.headers)
        )
        assert (problem["code"], problem["param"]) == ("conflict", "name")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "x" * 129}, "name"),
            ({"name": "a\x00b"}, "name"),
            ({"name": 5}, "name"),
            ({"name": "x", "is_admin": "yes"}, "is_admin"),
            ({"name": "x", "max_queued": -1}, "max_queued"),
            ({"name": "x", "max_bytes": 2**63}, "max_bytes"),
            ({"name": "x", "colour": "red"}, "colour"),
        ],
    )
    def test_a_wrong_field_is_named(self, client, admin, body, param):
        problem = problem_of(client.post("/tenants", json=body, headers=admin.headers))
        assert (problem["status"], problem["code"], problem["param"]) == (
            *(422, "invalid_request"),
            param,
        )


class TestQuotas:
    def test_are_changed_one_by_one_and_reset(self, client, admin, alice):
        path = f"/tenants/{alice.tenant_id}"

        def change(**quotas):
            return client.patch(path, json=quotas, headers=admin.headers).json()["quotas"]

        assert change(max_queued=0) == {
            "max_queued": 0,
            "max_running": 16,
            "max_bytes": 100 << 30,
        }
        assert change(max_running=3)["max_queued"] == 0
        assert change(max_queued=None, max_bytes=7) == {
            "max_queued": 1000,
            "max_running": 3,
            "max_bytes": 7,
        }
        assert change()["max_bytes"] == 7

    def test_hold_from_then_on(self, client, database, admin, alice):
        spec = job_spec(add_dataset_row(database, alice))
        path = f"/tenants/{alice.tenant_id}"
        assert client.patch(path, json={"max_queued": 0}, headers=admin.headers).status_code == 200
        problem = problem_of(client.post("/jobs", json=spec, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (429, "quota_exceeded")
        assert "quota max_queued is 0" in problem["detail"]
        assert client.patch(path, json={"max_queued": 1}, headers=admin.headers).status_code == 200
        assert client.post("/jobs", json=spec, headers=alice.headers).status_code == 202

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"max_queued": -1}, "max_queued"),
            ({"max_running": "3"}, "max_running"),
            ({"max_bytes": 1.5}, "max_bytes"),
            ({"name": "x"}, "name"),
        ],
    )
    def test_a_wrong_one_is_named_and_nothing_changes(self, client, admin, alice, body, param):
        path = f"/tenants/{alice.tenant_id}"
        answer = client.patch(path, json={"max_queued": 5, **body}, headers=admin.headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["param"]) == (422, param)
        usage = client.get(f"{path}/usage", headers=admin.headers).json()
        assert usage["quotas"]["max_queued"] == 1000

    def test_of_an_unknown_tenant(self, client, admin):
        answer = client.patch("/tenants/ten_missing", json={}, headers=admin.headers)
        assert problem_of(answer)["code"] == "not_found"


class TestKeys:
    def test_are_listed_without_their_secrets(self, client, admin, alice, bob):
        path = f"/tenants/{alice.tenant_id}/keys"
        new = client.post(path, json={"name": "ci"}, headers=admin.headers).json()
        assert client.delete(f"/keys/{alice.key_id}", headers=admin.headers).status_code == 204
        answer = client.get(path, headers=admin.headers)
        first, second = answer.json()["data"]
        secret = new.pop("secret")
        assert first == new
        assert first["revoked_at"] is None
        assert second["id"] == alice.key_id
        assert second["revoked_at"].endswith("Z")
        assert secret not in answer.text
        assert bob.key_id not in answer.text
        page = client.get(f"{path}?limit=1", headers=admin.headers).json()
        assert (page["data"], page["has_more"]) == ([first], True)
        rest = client.get(f"{path}?after={first['id']}", headers=admin.headers).json()
        assert rest["data"] == [second]
        foreign = client.get(f"{path}?after={bob.key_id}", headers=admin.headers)
        assert problem_of(foreign)["param"] == "after"

    def test_a_secret_is_shown_once_and_works(self, client, admin, alice):
        path = f"/tenants/{alice.tenant_id}/keys"
        answer = client.post(path, json={"name": "ci"}, headers=admin.headers)
        assert answer.status_code == 201
        key = answer.json()
        assert (key["object"], key["tenant"], key["name"]) == ("api_key", alice.tenant_id, "ci")
        assert key["created_at"].endswith("Z")
        headers = {"Authorization": f"Bearer {key['secret']}"}
        assert client.get("/jobs", headers=headers).status_code == 200

    def test_a_revoked_one_is_refused_at_once(self, client, admin, alice):
        assert client.get("/jobs", headers=alice.headers).status_code == 200
        for _ in range(2):
            answer = client.delete(f"/keys/{alice.key_id}", headers=admin.headers)
            assert answer.status_code == 204
        problem = problem_of(client.get("/jobs", headers=alice.headers))
        assert (problem["status"], problem["code"]) == (401, "unauthorized")

    @pytest.mark.parametrize("identifier", ["missing", "key_missing", "%00", "..%2Fx", "x" * 3000])
    def test_one_that_is_not_there_cannot_be_revoked(self, client, admin, identifier):
        answer = client.delete(f"/keys/{identifier}", headers=admin.headers)
        assert problem_of(answer)["code"] == "not_found"

    def test_an_unknown_tenant_has_no_keys(self, client, admin):
        listed = client.get("/tenants/ten_missing/keys", headers=admin.headers)
        assert problem_of(listed)["code"] == "not_found"
        answer = client.post("/tenants/ten_missing/keys", json={}, headers=admin.headers)
        assert problem_of(answer)["code"] == "not_found"


class TestUsage:
    def test_counts_jobs_and_bytes(self, client, database, admin, alice, bob):
        with database.write() as session:
            for member in (alice, alice, bob):
                submit(session, member.tenant_id, NEW, max_queued=9)
        usage = client.get(f"/tenants/{alice.tenant_id}/usage", headers=admin.headers).json()
        assert (usage["object"], usage["tenant"]) == ("tenant.usage", alice.tenant_id)
        assert usage["jobs"]["queued"] == 2
        assert sum(usage["jobs"].values()) == 2
        assert len(usage["jobs"]) == 10
        assert usage["stored_bytes"] == 0
        assert usage["quotas"]["max_queued"] == 1000
