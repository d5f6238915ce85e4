"""POST /predictions and the routes beside it: what is refused at the door, states, and results."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from store.tables import Job
from tests.service.gateways import (
    add_dataset_row,
    finished_job,
    finished_prediction,
    problem_of,
)

TASK = {"type": "classification", "text": ["text"], "label": "label"}


@pytest.fixture
def dataset(database, alice) -> str:
    return add_dataset_row(database, alice, name="rows")


@pytest.fixture
def job(database, settings, alice) -> str:
    return job_reading(database, settings, alice, TASK)


def job_reading(database, settings, member, task: dict[str, Any]) -> str:
    identifier = finished_job(database, settings, member)
    with database.write() as session:
        session.execute(sa.update(Job).where(Job.id == identifier).values(spec={"task": task}))
    return identifier


def post(client, member, **body: Any) -> Any:
    return client.post("/predictions", json=body, headers=member.headers)


class TestPost:
    def test_queues_it(self, client, alice, dataset, job):
        answer = post(client, alice, dataset="rows", jobs=[job], name="n", split="validation")

        assert answer.status_code == 202
        document = answer.json()
        assert answer.headers["location"] == f"/predictions/{document['id']}"
        assert (document["object"], document["status"]) == ("prediction", "queued")
        assert (document["dataset"], document["jobs"]) == (dataset, [job])
        assert (document["format"], document["artifact"]) == ("parquet", None)
        assert document["progress"] == {
            "rows": 0,
            "total_rows": 40,
            "fraction": 0.0,
            "eta_seconds": None,
        }
        shown = client.get(f"/predictions/{document['id']}", headers=alice.headers).json()
        assert shown == document

    def test_names_the_column_and_the_job_that_a_dataset_lacks(
        self, *, client, database, settings, alice, dataset, job
    ):
        task = {**TASK, "text": ["title", "text"]}
        other = job_reading(database, settings, alice, task)
        problem = problem_of(post(client, alice, dataset=dataset, jobs=[job, other]))
        assert (problem["status"], problem["code"]) == (422, "column_missing")
        assert problem["param"] == "jobs.1"
        assert "'title'" in problem["detail"]
        assert other in problem["detail"]

    @pytest.mark.parametrize(
        ("change", "status", "code", "param"),
        [
            ({"format": "csv"}, 422, "invalid_request", "format"),
            ({"split": "test"}, 422, "split_missing", "split"),
            ({"dataset": "ds_0missing"}, 404, "not_found", "dataset"),
            ({"jobs": ["job_0missing"]}, 404, "not_found", "jobs.0"),
            ({"jobs": ["../x"]}, 404, "not_found", "jobs.0"),
            ({"jobs": []}, 422, "invalid_request", "jobs"),
            ({"unknown": 1}, 422, "invalid_request", "unknown"),
        ],
    )
    def test_refuses_bad_requests(
        self, *, client, alice, dataset, job, change, status, code, param
    ):
        body = {"dataset": dataset, "jobs": [job], **change}
        problem = problem_of(post(client, alice, **body))
        assert (problem["status"], problem["code"], problem["param"]) == (status, code, param)

    def test_refuses_a_job_twice(self, client, alice, dataset, job):
        problem = problem_of(post(client, alice, dataset=dataset, jobs=[job, job]))
        assert (problem["status"], problem["param"]) == (422, "jobs")

    def test_anothers_dataset_and_job_do_not_exist(self, client, bob, dataset, job):
        problem = problem_of(post(client, bob, dataset=dataset, jobs=[job]))
        assert (problem["status"], problem["param"]) == (404, "dataset")

    def test_a_repeated_request_queues_one(self, client, alice, dataset, job):
        body = {"dataset": dataset, "jobs": [job]}
        headers = {**alice.headers, "Idempotency-Key": "k"}
        first, second = (client.post("/predictions", json=body, headers=headers) for _ in "ab")
        assert first.json() == second.json()
        assert len(client.get("/predictions", headers=alice.headers).json()["data"]) == 1


class TestActions:
    def test_a_waiting_one_is_cancelled_once_then_deleted(self, client, alice, dataset, job):
        path = f"/predictions/{post(client, alice, dataset=dataset, jobs=[job]).json()['id']}"
        in_use = problem_of(client.delete(f"/datasets/{dataset}", headers=alice.headers))
        assert in_use["code"] == "dataset_in_use"
        assert client.delete(path, headers=alice.headers).status_code == 409
        answer = client.post(f"{path}/cancel", headers=alice.headers)
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        again = problem_of(client.post(f"{path}/cancel", headers=alice.headers))
        assert again["code"] == "illegal_transition"
        assert problem_of(client.get(f"{path}/result", headers=alice.headers))["code"] == (
            "not_ready"
        )
        assert client.delete(path, headers=alice.headers).status_code == 204
        assert client.get(path, headers=alice.headers).status_code == 404

    def test_the_result_is_sent_whole_or_in_part(
        self, *, client, database, settings, alice, dataset, job
    ):
        identifier = finished_prediction(database, settings, alice, dataset=dataset, job=job)
        document = client.get(f"/predictions/{identifier}", headers=alice.headers).json()
        url, headers = document["artifact"]["url"], alice.headers
        whole = client.get(url, headers=headers)
        assert whole.content == b"secret answers"
        assert whole.headers["etag"] == f'"{document["artifact"]["sha256"]}"'
        assert "secret prediction.jsonl" in whole.headers["content-disposition"]
        part = client.get(url, headers={**headers, "range": "bytes=7-"})
        assert (part.status_code, part.content) == (206, b"answers")

    def test_lists_by_status_and_name(self, *, client, database, settings, alice, dataset, job):
        done = finished_prediction(database, settings, alice, dataset=dataset, job=job)
        waiting = post(client, alice, dataset=dataset, jobs=[job], name="n").json()["id"]

        def listed(query: str) -> list[str]:
            page = client.get(f"/predictions{query}", headers=alice.headers).json()
            return [entry["id"] for entry in page["data"]]

        assert listed("") == [waiting, done]
        assert listed("?status=succeeded") == [done]
        assert listed("?name=n") == [waiting]
        assert listed(f"?after={waiting}") == [done]
