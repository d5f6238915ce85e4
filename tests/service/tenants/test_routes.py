"""service.tenants.routes: for administrators only."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

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
    ("POST", "/tenants/{tenant}/suspend"),
    ("POST", "/tenants/{tenant}/resume"),
    ("DELETE", "/tenants/{tenant}"),
    ("GET", "/admin/audit"),
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
            ({"name": "a\u200bb"}, "name"),
            ({"name": " "}, "name"),
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

    def test_expire(self, client, admin, alice):
        path = f"/tenants/{alice.tenant_id}/keys"
        end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        key = client.post(path, json={"expires_at": end}, headers=admin.headers).json()
        assert datetime.fromisoformat(key["expires_at"]) == datetime.fromisoformat(end)
        for wrong, status, code in (
            ("2020-01-01T00:00:00Z", 409, "key_invalid"),
            ("2099-01-01T00:00:00", 422, "invalid_request"),  # in which zone?
            ("soon", 422, "invalid_request"),
        ):
            answer = client.post(path, json={"expires_at": wrong}, headers=admin.headers)
            problem = problem_of(answer)
            assert (problem["status"], problem["code"]) == (status, code)
            assert problem["param"] == "expires_at"


class TestOwnKeys:
    def test_are_listed_by_their_owner(self, client, alice, bob):
        answer = client.get("/keys", headers=alice.headers)
        assert [key["id"] for key in answer.json()["data"]] == [alice.key_id]
        assert bob.key_id not in answer.text

    def test_are_replaced_by_their_owner(self, client, alice):
        path = f"/keys/{alice.key_id}/replace"
        answer = client.post(path, json={"grace_seconds": 60}, headers=alice.headers)
        assert answer.status_code == 201
        new = {"Authorization": f"Bearer {answer.json()['secret']}"}
        for headers in (alice.headers, new):  # both during the grace
            assert client.get("/jobs", headers=headers).status_code == 200
        assert client.post(path, json={}, headers=new).status_code == 201
        assert client.get("/jobs", headers=alice.headers).status_code == 401
        problem = problem_of(client.post(path, json={}, headers=new))
        assert (problem["status"], problem["code"]) == (409, "key_invalid")

    def test_of_another_tenant_are_not_there(self, client, admin, alice, bob):
        path = f"/keys/{bob.key_id}/replace"
        problem = problem_of(client.post(path, json={}, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (404, "not_found")
        assert client.get("/jobs", headers=bob.headers).status_code == 200
        assert client.post(path, json={}, headers=admin.headers).status_code == 201

    @pytest.mark.parametrize("seconds", [-1, 10**9, "60", 1.5])
    def test_a_wrong_grace_is_named(self, client, alice, seconds):
        path = f"/keys/{alice.key_id}/replace"
        answer = client.post(path, json={"grace_seconds": seconds}, headers=alice.headers)
        assert problem_of(answer)["param"] == "grace_seconds"


class TestSuspension:
    def test_refuses_every_key_until_it_ends(self, client, admin, alice):
        path = f"/tenants/{alice.tenant_id}"
        tenant = client.post(f"{path}/suspend", headers=admin.headers).json()
        assert tenant["suspended_at"].endswith("Z")
        problem = problem_of(client.get("/jobs", headers=alice.headers))
        assert (problem["status"], problem["code"]) == (403, "tenant_suspended")
        assert client.post(f"{path}/resume", headers=admin.headers).json()["suspended_at"] is None
        assert client.get("/jobs", headers=alice.headers).status_code == 200

    def test_of_the_own_tenant_is_refused(self, client, admin):
        path = f"/tenants/{admin.tenant_id}"
        for method, url in (("POST", f"{path}/suspend"), ("DELETE", path)):
            problem = problem_of(client.request(method, url, headers=admin.headers))
            assert (problem["status"], problem["code"]) == (409, "own_tenant")
        assert client.get("/tenants", headers=admin.headers).status_code == 200


class TestDelete:
    def test_takes_the_tenant_with_all_it_owns(self, client, database, admin, alice):
        path = f"/tenants/{alice.tenant_id}"
        dataset = add_dataset_row(database, alice)
        assert client.delete(path, headers=admin.headers).status_code == 204
        assert client.get(f"/datasets/{dataset}", headers=alice.headers).status_code == 401
        assert problem_of(client.get(f"{path}/usage", headers=admin.headers))["status"] == 404
        again = client.delete(path, headers=admin.headers)
        assert problem_of(again)["code"] == "not_found"


class TestAudit:
    def test_says_who_did_what(self, client, database, admin, alice):
        client.post("/tenants", json={"name": "search"}, headers=admin.headers)
        client.patch(f"/tenants/{alice.tenant_id}", json={"max_queued": 9}, headers=admin.headers)
        dataset = add_dataset_row(database, alice)
        job = client.post("/jobs", json=job_spec(dataset), headers=alice.headers).json()["id"]
        client.post(f"/jobs/{job}/cancel", headers=alice.headers)
        client.delete(f"/jobs/{job}", headers=alice.headers)
        client.delete(f"/datasets/{dataset}", headers=alice.headers)
        client.post(f"/keys/{alice.key_id}/replace", json={}, headers=alice.headers)
        client.delete(f"/keys/{alice.key_id}", headers=admin.headers)
        client.post(f"/tenants/{alice.tenant_id}/suspend", headers=admin.headers)
        answer = client.delete(f"/tenants/{alice.tenant_id}", headers=admin.headers)
        listed = client.get("/admin/audit", headers=admin.headers).json()["data"][::-1]
        assert [(event["action"], event["subject"]) for event in listed[1:]] == [
            ("tenant.quotas_changed", alice.tenant_id),
            ("job.cancelled", job),
            ("job.deleted", job),
            ("dataset.deleted", dataset),
            ("key.replaced", alice.key_id),
            ("key.revoked", alice.key_id),
            ("tenant.suspended", alice.tenant_id),
            ("tenant.deleted", alice.tenant_id),
        ]
        assert listed[0]["details"] == {"name": "search", "is_admin": False}
        by_alice = {"tenant": alice.tenant_id, "key": alice.key_id}
        assert by_alice.items() <= listed[2]["actor"].items()
        assert listed[-1]["actor"]["request_id"] == answer.headers["x-request-id"]
        assert "hifi_" not in json.dumps(listed)

    def test_is_filtered_and_has_pages(self, client, admin, alice):
        for _ in range(3):
            client.patch(
                f"/tenants/{alice.tenant_id}", json={"max_queued": 9}, headers=admin.headers
            )
        client.post("/tenants", json={"name": "search"}, headers=admin.headers)

        def ask(**query):
            return client.get("/admin/audit", params=query, headers=admin.headers).json()

        page = ask(tenant=alice.tenant_id, limit=2)
        assert (len(page["data"]), page["has_more"]) == (2, True)
        rest = ask(tenant=alice.tenant_id, after=page["last_id"])
        assert (len(rest["data"]), rest["has_more"]) == (1, False)
        assert len(ask(action="tenant.created")["data"]) == 1
        wrong = client.get("/admin/audit?action=x", headers=admin.headers)
        assert problem_of(wrong)["param"] == "action"
        wrong = client.get("/admin/audit?tenant=%00", headers=admin.headers)
        assert (problem_of(wrong)["status"], problem_of(wrong)["param"]) == (404, "tenant")

    def test_a_refused_action_leaves_no_trace(self, client, admin):
        client.delete(f"/tenants/{admin.tenant_id}", headers=admin.headers)
        client.post("/tenants", json={"name": ""}, headers=admin.headers)
        assert client.get("/admin/audit", headers=admin.headers).json()["data"] == []


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
