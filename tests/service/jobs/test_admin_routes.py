"""service.jobs.admin_routes: administrators see and cancel all jobs, not what is in them."""

from __future__ import annotations

import pytest

from store.jobs.actions import cancel
from tests.service.gateways import (
    MODEL,
    Member,
    add_dataset_row,
    finished_job,
    job_spec,
    problem_of,
)
from tests.service.work import running_job

SECRET = "secret"  # noqa: S105 - a word to search for


@pytest.fixture
def queued(client, alice: Member, database) -> str:
    """Return alice's job, whose spec, name and metadata are hers."""
    dataset = add_dataset_row(database, alice, name=SECRET)
    spec = job_spec(dataset, name=SECRET, metadata={SECRET: SECRET}, task={"label": "label"})
    answer = client.post("/jobs", json=spec, headers=alice.headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def listed(client, admin, query: str = "") -> list[str]:
    answer = client.get(f"/admin/jobs{query}", headers=admin.headers)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


@pytest.fixture
def done(database, settings, bob: Member) -> tuple[str, Member]:
    """Return bob's finished job, and bob."""
    return finished_job(database, settings, bob), bob


class TestList:
    def test_shows_every_tenants_jobs_and_nothing_of_their_content(
        self, client, admin, alice, queued
    ):
        page = client.get("/admin/jobs", headers=admin.headers).json()
        (job,) = page["data"]
        assert job == {
            "id": queued,
            "object": "admin.job",
            "tenant": alice.tenant_id,
            "status": "queued",
            "model": MODEL,
            "attempt": 1,
            "worker": None,
            "error": None,
            "created_at": job["created_at"],
            "started_at": None,
            "finished_at": None,
        }
        assert SECRET not in str(page)

    def test_is_filtered_and_paged(self, client, admin, alice, database, done):
        finished, bob = done
        dataset = add_dataset_row(database, alice)
        mine = [
            client.post("/jobs", json=job_spec(dataset), headers=alice.headers).json()["id"]
            for _ in range(2)
        ]
        assert listed(client, admin) == [mine[1], mine[0], finished]
        assert listed(client, admin, "?status=succeeded") == [finished]
        assert listed(client, admin, f"?tenant={alice.tenant_id}") == mine[::-1]
        assert listed(client, admin, f"?tenant={bob.tenant_id}&status=queued") == []
        assert listed(client, admin, f"?limit=1&after={mine[1]}") == [mine[0]]

    @pytest.mark.parametrize("tenant", ["ten_missing", "%00", "acme"])
    def test_of_an_unknown_tenant_is_not_found(self, client, admin, tenant):
        problem = problem_of(client.get(f"/admin/jobs?tenant={tenant}", headers=admin.headers))
        assert (problem["status"], problem["code"]) == (404, "not_found")


class TestCancel:
    def test_names_an_administrator(self, client, admin, alice, queued):
        answer = client.post(f"/admin/jobs/{queued}/cancel", headers=admin.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        events = client.get(f"/jobs/{queued}/events", headers=alice.headers).json()["data"]
        assert events[-1]["message"] == "cancelled by an administrator"
        (entry,) = client.get("/admin/audit", headers=admin.headers).json()["data"]
        assert (entry["action"], entry["subject"]) == ("job.cancelled", queued)
        assert entry["tenant"] == alice.tenant_id
        assert entry["actor"] == {
            "tenant": admin.tenant_id,
            "key": admin.key_id,
            "request_id": answer.headers["x-request-id"],
        }

    def test_of_a_running_job_is_requested(self, client, admin, alice, database):
        job, _ = running_job(database, alice.tenant_id)
        answer = client.post(f"/admin/jobs/{job}/cancel", headers=admin.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        events = client.get(f"/jobs/{job}/events", headers=alice.headers).json()["data"]
        assert events[-1]["message"] == "cancellation requested by an administrator"

    def test_of_a_finished_job_is_refused(self, client, admin, alice, queued, database):
        with database.write() as session:
            cancel(session, alice.tenant_id, queued)
        problem = problem_of(client.post(f"/admin/jobs/{queued}/cancel", headers=admin.headers))
        assert (problem["status"], problem["code"]) == (409, "illegal_transition")

    def test_of_a_missing_job_is_not_found(self, client, admin):
        problem = problem_of(client.post("/admin/jobs/job_none/cancel", headers=admin.headers))
        assert problem["status"] == 404


@pytest.mark.parametrize("method_path", ["GET /admin/jobs", "POST /admin/jobs/{job}/cancel"])
def test_others_are_refused_whatever_there_is(client, alice, queued, method_path):
    method, path = method_path.split()
    for job in (queued, "job_missing", "%00"):
        url = path.format(job=job)
        problem = problem_of(client.request(method, url, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (403, "forbidden")
        assert problem_of(client.request(method, url))["status"] == 401
