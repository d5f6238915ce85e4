"""service.jobs.routes: what an owner can do with a job over HTTP."""

from __future__ import annotations

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from service.app import build_app
from store.jobs.claims import Claimant, claim_next
from store.jobs.leases import Lease, Progress
from store.states import JobStatus
from store.storage import Blob
from store.tables import Job, JobEvent
from tests.service.gateways import MODEL, add_dataset_row, job_spec, problem_of, served
from tests.service.work import RESULT
from tests.waiting import eventually, patience

WORKER = Claimant(worker_id="worker-1", backbones=frozenset({MODEL}))
SHA = "0123456789abcdef" * 4


@pytest.fixture
def dataset(database, alice):
    return add_dataset_row(database, alice)


@pytest.fixture
def post(client, alice, dataset):
    def post(**changes):
        return client.post("/jobs", json=job_spec(dataset) | changes, headers=alice.headers)

    return post


@pytest.fixture
def running(database):
    def running():
        claimed = claim_next(database, WORKER, lease_seconds=60, max_running=9)
        return Lease(database, claimed.id, fence=claimed.fence, seconds=60)

    return running


class TestNames:
    def test_a_data_set_may_be_named(self, database, alice, post):
        named = add_dataset_row(database, alice, name="films")
        assert post(dataset="films").json()["spec"]["dataset"] == named
        add_dataset_row(database, alice, name="films")
        problem = problem_of(post(dataset="films"))
        assert (problem["status"], problem["code"]) == (409, "dataset_ambiguous")
        assert problem["param"] == "dataset"
        assert named in problem["detail"]

    def test_of_another_tenant_mean_nothing(self, database, bob, post):
        add_dataset_row(database, bob, name="films")
        assert problem_of(post(dataset="films"))["code"] == "not_found"

    def test_select_the_jobs_of_a_list(self, client, alice, post):
        first, _ = post(name="films").json(), post(name="other").json()
        for name, found in (("films", [first["id"]]), ("Films", [])):
            answer = client.get("/jobs", params={"name": name}, headers=alice.headers).json()
            assert [job["id"] for job in answer["data"]] == found

    def test_select_the_data_sets_of_a_list(self, client, database, alice):
        named = add_dataset_row(database, alice, name="films")
        for name, found in (("films", [named]), ("\u6570", [])):
            answer = client.get("/datasets", params={"name": name}, headers=alice.headers).json()
            assert [each["id"] for each in answer["data"]] == found


class TestPost:
    def test_queues_a_job_and_returns_its_location(self, client, alice, dataset, post):
        answer = post(name="mrpc", metadata={"team": "search"}, k=5)
        assert answer.status_code == 202
        job = answer.json()
        assert re.fullmatch(r"job_[0-9a-z]{24}", job["id"])
        assert answer.headers["location"] == f"/jobs/{job['id']}"
        assert (job["object"], job["status"], job["tenant"]) == ("job", "queued", alice.tenant_id)
        assert (job["name"], job["metadata"]) == ("mrpc", {"team": "search"})
        assert (job["spec"]["dataset"], job["spec"]["k"]) == (dataset, 5)
        assert job["progress"] == {
            **dict.fromkeys(("phase", "step", "total_steps", "eta_seconds")),
            "fraction": 0.0,
        }
        assert [job[name] for name in ("selection", "result", "artifact", "error")] == [None] * 4
        assert (job["attempt"], job["started_at"], job["finished_at"]) == (1, None, None)
        assert client.get(answer.headers["location"], headers=alice.headers).json() == job

    def test_times_are_of_the_contract(self, post):
        text = post().json()["created_at"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()) < 60

    def test_stops_at_the_quota(self, database, post):
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 2"))
        assert [post().status_code for _ in range(3)] == [202, 202, 429]
        answer = post()
        assert problem_of(answer)["code"] == "quota_exceeded"
        assert int(answer.headers["retry-after"]) > 0

    def test_publishes_a_token_after_the_commit(self, database, post, published):
        post()
        assert published == [1]
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 0"))
        assert post().status_code == 429
        assert published == [1]


class TestDryRun:
    def test_estimates_and_stores_nothing(self, client, alice, database, dataset, published):
        answer = client.post(
            "/jobs?dry_run=true",
            json=job_spec(dataset),
            headers={**alice.headers, "Idempotency-Key": "k"},
        )
        assert answer.status_code == 200, answer.text
        assert "location" not in answer.headers
        with database.read() as session:
            assert session.scalars(sa.select(Job)).all() == []
        assert published == []
        # Nor has it used up its key.
        answer = client.post(
            "/jobs", json=job_spec(dataset), headers={**alice.headers, "Idempotency-Key": "k"}
        )
        assert answer.status_code == 202

    @pytest.mark.parametrize("value", ["maybe", "", "1", "True", "yes", "true&dry_run=false"])
    def test_needs_the_value_true(self, client, alice, database, dataset, value):
        answer = client.post(
            f"/jobs?dry_run={value}", json=job_spec(dataset), headers=alice.headers
        )
        problem = problem_of(answer)
        assert (problem["status"], problem["param"]) == (422, "dry_run")
        with database.read() as session:
            assert session.scalars(sa.select(Job)).all() == []

    @pytest.mark.parametrize("route", ["/jobs", "/jobs?dry_run=true"])
    def test_refuses_what_a_post_refuses(self, client, alice, dataset, route):
        spec = job_spec(dataset, training={"head_start": "keep"})  # the backbone has no task head
        problem = problem_of(client.post(route, json=spec, headers=alice.headers))
        assert (problem["status"], problem["param"]) == (422, "training.head_start")


class TestHub:
    @pytest.mark.parametrize("dry_run", ["true", "false"])
    def test_a_slow_hub_delays_only_requests_that_need_it(
        self, settings, alice, dataset, monkeypatch, dry_run
    ):
        asked, going_on = [], Event()

        def pin(name):
            asked.append(name)
            assert going_on.wait(patience(30))
            return "c" * 40

        monkeypatch.setattr("service.jobs.hub.pin_model", pin)
        app = build_app(settings.model_copy(update={"allow_hub": True}))
        spec = job_spec(dataset, model="org/model")
        with (
            served(app) as url,
            ThreadPoolExecutor(30) as pool,
            httpx2.Client(base_url=url, headers=alice.headers, timeout=patience(60)) as client,
        ):
            query = {"dry_run": dry_run}
            posted = [pool.submit(client.post, "/jobs", params=query, json=spec) for _ in range(30)]
            try:
                eventually(lambda: asked)
                time.sleep(0.5)  # for all others to come as far as they get
                assert client.get("/jobs", timeout=patience(5)).status_code == 200
            finally:
                going_on.set()
            assert {each.result().status_code for each in posted} == {
                200 if dry_run == "true" else 202
            }


class TestList:
    def test_pages_are_newest_first_and_whole(self, client, alice, post):
        posted = [post().json()["id"] for _ in range(5)]
        seen, after = [], ""
        for _ in range(3):
            page = client.get(f"/jobs?limit=2{after}", headers=alice.headers).json()
            assert page["object"] == "list"
            ids = [job["id"] for job in page["data"]]
            assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
            seen += ids
            after = f"&after={page['last_id']}"
        assert not page["has_more"]
        assert seen == posted[::-1]

    def test_goes_on_after_a_job_that_is_deleted_meanwhile(self, client, alice, post):
        first, second, third = (post().json()["id"] for _ in range(3))
        client.post(f"/jobs/{second}/cancel", headers=alice.headers)
        assert client.delete(f"/jobs/{second}", headers=alice.headers).status_code == 204
        for after, rest in ((third, [first]), (second, [first])):
            page = client.get(f"/jobs?after={after}", headers=alice.headers).json()
            assert [job["id"] for job in page["data"]] == rest

    def test_an_empty_one_has_no_ids(self, client, alice):
        page = client.get("/jobs", headers=alice.headers).json()
        assert page == {
            "object": "list",
            "data": [],
            "has_more": False,
            "first_id": None,
            "last_id": None,
        }

    def test_is_filtered_by_status(self, client, alice, post):
        first = post().json()["id"]
        post()
        client.post(f"/jobs/{first}/cancel", headers=alice.headers)
        page = client.get("/jobs?status=cancelled", headers=alice.headers).json()
        assert [job["id"] for job in page["data"]] == [first]

    def test_artifacts_are_shown_with_their_jobs(self, client, alice, post, running):
        posted = [post().json()["id"] for _ in range(2)]
        succeed(running())
        page = client.get("/jobs", headers=alice.headers).json()
        assert [job["id"] for job in page["data"]] == posted[::-1]
        newest, oldest = page["data"]
        assert newest["artifact"] is None
        assert oldest["artifact"]["encodings"]["lora"] == {"bytes": 3, "sha256": SHA}


class TestGet:
    @pytest.mark.parametrize(
        "identifier",
        [
            "job_missing",
            "missing",
            "%00",
            "..%2F..%2Fetc",
            "ds_1",
            "%F0%9F%98%80",
            "x" * 9999,
            "%ff",
        ],
    )
    def test_what_is_not_there_is_not_found(self, client, alice, identifier):
        problem = problem_of(client.get(f"/jobs/{identifier}", headers=alice.headers))
        assert (problem["status"], problem["code"]) == (404, "not_found")

    def test_shows_progress(self, client, alice, post, running):
        job_id = post().json()["id"]
        lease = running()
        lease.advance(JobStatus.SELECTING, message="selecting")
        lease.advance(JobStatus.TRAINING, message="training")
        lease.keep_selection(
            selection={"heads": [[0, 1], [5, 3]], "trainable_parameters": 7, "fraction": 0.5},
            heads={},
        )
        lease.report(Progress(phase="training", step=5, total_steps=20, eta_seconds=1.5))
        job = client.get(f"/jobs/{job_id}", headers=alice.headers).json()
        assert job["status"] == "training"
        assert job["started_at"].endswith("Z")
        assert job["selection"]["heads"] == [[0, 1], [5, 3]]
        assert job["progress"] == {
            "phase": "training",
            "step": 5,
            "total_steps": 20,
            "fraction": 0.25,
            "eta_seconds": 1.5,
        }

    def test_shows_its_results(self, client, alice, post, running):
        job_id = post().json()["id"]
        succeed(running())
        job = client.get(f"/jobs/{job_id}", headers=alice.headers).json()
        assert (job["status"], job["progress"]["fraction"]) == ("succeeded", 1.0)
        assert job["result"]["metrics"] == {"accuracy": 0.9}
        assert job["result"]["yardsticks"] is None  # as of jobs of earlier versions
        assert (job["artifact"]["bytes"], job["artifact"]["sha256"]) == (1, SHA)
        assert set(job["artifact"]["encodings"]) == {"float32", "bfloat16", "lora"}

    def test_shows_what_its_metrics_are_compared_with(self, client, alice, post, running):
        job_id = post().json()["id"]
        known = {"majority": {"accuracy": 0.5}, "probe": {"accuracy": 0.8}}
        succeed(running(), yardsticks=known)
        job = client.get(f"/jobs/{job_id}", headers=alice.headers).json()
        assert job["result"]["yardsticks"] == {**known, "untuned": None}

    def test_shows_the_test_split_and_the_report(self, client, alice, post, running):
        job_id = post().json()["id"]
        scores = {"label": "no", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
        report = {
            "split": "test",
            "classes": 2,
            "per_class": [scores, {**scores, "label": "yes"}],
            "confusion": [[1, 0], [1, 0]],
        }
        succeed(running(), test={"accuracy": 0.5, "loss": math.inf}, report=report)
        result = client.get(f"/jobs/{job_id}", headers=alice.headers).json()["result"]
        assert (result["test"], result["report"]) == ({"accuracy": 0.5, "loss": None}, report)

    def test_without_a_test_split_has_none(self, client, alice, post, running):
        job_id = post().json()["id"]
        succeed(running())
        result = client.get(f"/jobs/{job_id}", headers=alice.headers).json()["result"]
        assert (result["test"], result["report"]) == (None, None)

    def test_shows_why_it_failed(self, client, alice, post, running):
        job_id = post().json()["id"]
        running().fail(code="out_of_memory", message="too large", param="training.batch_size")
        job = client.get(f"/jobs/{job_id}", headers=alice.headers).json()
        assert job["error"] == {
            "code": "out_of_memory",
            "message": "too large",
            "param": "training.batch_size",
        }
        assert job["finished_at"].endswith("Z")


class TestActions:
    def test_a_waiting_job_is_cancelled_at_once(self, client, alice, post):
        job_id = post().json()["id"]
        answer = client.post(f"/jobs/{job_id}/cancel", headers=alice.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        problem = problem_of(client.post(f"/jobs/{job_id}/cancel", headers=alice.headers))
        assert (problem["status"], problem["code"]) == (409, "illegal_transition")
        assert "cancelled" in problem["detail"]

    def test_a_training_job_pauses_and_resumes(self, client, alice, post, running, published):
        job_id = post().json()["id"]
        lease = running()
        pause = f"/jobs/{job_id}/pause"
        assert problem_of(client.post(pause, headers=alice.headers))["status"] == 409
        lease.advance(JobStatus.TRAINING, message="training")
        answer = client.post(pause, headers=alice.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "pausing")
        lease.stop()
        published.clear()
        answer = client.post(f"/jobs/{job_id}/resume", headers=alice.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert published == [1]
        answer = client.post(f"/jobs/{job_id}/resume", headers=alice.headers)
        assert problem_of(answer)["code"] == "illegal_transition"
        assert published == [1]

    def test_a_finished_job_is_deleted_with_all_that_is_its(
        self, client, alice, database, post, running
    ):
        job_id = post().json()["id"]
        path = f"/jobs/{job_id}"
        assert problem_of(client.delete(path, headers=alice.headers))["status"] == 409
        succeed(running())
        answer = client.delete(path, headers=alice.headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert problem_of(client.get(path, headers=alice.headers))["status"] == 404
        assert problem_of(client.delete(path, headers=alice.headers))["status"] == 404
        with database.read() as session:
            assert session.scalars(sa.select(JobEvent)).all() == []

    @pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
    @pytest.mark.parametrize("identifier", ["job_missing", "%00"])
    def test_what_is_not_there_is_not_found(self, client, alice, action, identifier):
        answer = client.post(f"/jobs/{identifier}/{action}", headers=alice.headers)
        assert problem_of(answer)["code"] == "not_found"


def succeed(lease: Lease, **changes: Any) -> None:
    """End a job as a worker would."""
    lease.advance(JobStatus.TRAINING, message="training")
    sizes = {"float32": 1, "bfloat16": 2, "lora": 3}
    artifacts = {name: Blob(sha256=SHA, bytes=size) for name, size in sizes.items()}
    result = {**RESULT, "metrics": {"accuracy": 0.9}, **changes}
    lease.succeed(result=result, artifacts=artifacts)
