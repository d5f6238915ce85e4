"""service.jobs.routes: concurrent posts do not affect each other, with keys and the hub."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import sqlalchemy as sa

from service.app import build_app
from service.http.problems import ProblemError
from store.tables import IdempotencyRecord, Job, JobEvent
from tests.service.gateways import add_dataset_row, job_spec, opened, problem_of, served
from tests.waiting import eventually, patience


@pytest.fixture
def dataset(database, alice):
    return add_dataset_row(database, alice)


@pytest.fixture
def post_all(settings, alice, dataset):
    """Post all at once to a gateway on a socket; return the answers in order."""

    def post_all(*changes, members=None):
        with (
            served(build_app(settings)) as url,
            ThreadPoolExecutor(len(changes)) as pool,
            httpx2.Client(base_url=url, timeout=60) as client,
        ):
            asked = [
                pool.submit(
                    client.post,
                    "/jobs",
                    json=job_spec(dataset) | change,
                    headers=(members or {}).get(place, alice).headers,
                )
                for place, change in enumerate(changes)
            ]
            return [each.result() for each in asked]

    return post_all


def rows(database, table):
    with database.read() as session:
        return session.scalars(sa.select(table)).all()


class TestAtOnce:
    def test_each_posting_becomes_its_own_job(self, post_all, database, published):
        answers = post_all(*({"name": str(number)} for number in range(5)))
        assert [answer.status_code for answer in answers] == [202] * 5
        documents = [answer.json() for answer in answers]
        assert [document["name"] for document in documents] == list("01234")
        assert {job.id for job in rows(database, Job)} == {one["id"] for one in documents}
        assert sum(published) == 5
        events = rows(database, JobEvent)
        assert [(event.number, event.type, event.data) for event in events] == [
            (1, "status", {"status": "queued"})
        ] * 5

    def test_a_refused_one_takes_no_other_with_it(self, post_all, database, published):
        answers = post_all({}, {"model": "none"}, {"dataset": "ds_none"}, {})
        assert [answer.status_code for answer in answers] == [202, 422, 404, 202]
        assert [problem_of(answer)["code"] for answer in answers[1:3]] == [
            *("model_not_found", "not_found")
        ]
        assert len(rows(database, Job)) == 2
        assert sum(published) == 2

    def test_the_quota_holds(self, post_all, database, published):
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 2"))
        answers = post_all(*({} for _ in range(6)))
        assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 4
        assert len(rows(database, Job)) == sum(published) == 2

    def test_tenants_do_not_mix(self, post_all, database, alice, bob):
        theirs = add_dataset_row(database, bob)
        mine, refused, own = post_all({}, {}, {"dataset": theirs}, members={1: bob, 2: bob})
        assert (mine.status_code, refused.status_code, own.status_code) == (202, 404, 202)
        assert mine.json()["tenant"] == alice.tenant_id
        assert own.json()["tenant"] == bob.tenant_id


class TestKeys:
    def test_of_a_refused_one_nothing_is_kept(self, client, alice, database, dataset):
        headers = {**alice.headers, "Idempotency-Key": "k"}
        refused = client.post("/jobs", json=job_spec(dataset, model="none"), headers=headers)
        assert problem_of(refused)["code"] == "model_not_found"
        assert rows(database, IdempotencyRecord) == []
        assert client.post("/jobs", json=job_spec(dataset), headers=headers).status_code == 202

    def test_a_key_is_free_again_after_a_day(self, client, alice, database, dataset):
        headers = {**alice.headers, "Idempotency-Key": "k"}
        first = client.post("/jobs", json=job_spec(dataset), headers=headers)
        with database.write() as session:
            session.execute(sa.text("UPDATE idempotency_records SET created_at = '2001-01-01'"))
        second = client.post("/jobs", json=job_spec(dataset, k=4), headers=headers)
        assert second.status_code == 202
        assert second.content != first.content
        third = client.post("/jobs", json=job_spec(dataset, k=4), headers=headers)
        assert third.content == second.content


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Replace the hub; return the list of its requests."""
        asked = []

        def pin(model):
            asked.append(model)
            if model == "far/away":
                raise ProblemError("hub_unavailable", status=422, detail="the hub is away")
            return "c" * 40

        monkeypatch.setattr("service.jobs.hub.pin_model", pin)
        return asked

    @pytest.fixture
    def post(self, settings, alice, dataset):
        headers = {**alice.headers, "Idempotency-Key": "k"}
        with opened(settings.model_copy(update={"allow_hub": True})) as client:
            yield lambda **changes: client.post(
                "/jobs", json=job_spec(dataset, **changes), headers=headers
            )

    def test_it_is_called_once(self, post, database, asked):
        answer = post(model="org/model")
        (job,) = rows(database, Job)
        assert answer.json()["id"] == job.id
        assert (job.revision, job.needs_hub) == ("c" * 40, True)
        assert asked == ["org/model"]

    def test_an_answer_is_replayed_without_it(self, post, asked):
        first, second = post(model="org/model"), post(model="org/model")
        assert second.content == first.content
        assert asked == ["org/model"]
        assert problem_of(post(model="org/model", k=5))["code"] == "idempotency_key_reused"
        assert asked == ["org/model"]

    def test_a_failed_lookup_leaves_nothing(self, post, database, asked):
        assert problem_of(post(model="far/away"))["code"] == "hub_unavailable"
        assert rows(database, Job) == rows(database, IdempotencyRecord) == []
        assert post().status_code == 202
        assert asked == ["far/away"]

    def test_one_tenant_that_waits_for_it_holds_up_no_other(
        self, settings, alice, bob, dataset, monkeypatch
    ):
        gate, begun = threading.Event(), []

        def pin(model):
            if model == "org/slow":
                begun.append(model)
                gate.wait(patience(20))
            return "c" * 40

        monkeypatch.setattr("service.jobs.hub.pin_model", pin)
        settings = settings.model_copy(update={"allow_hub": True})
        with (
            served(build_app(settings)) as url,
            ThreadPoolExecutor(10) as pool,
            httpx2.Client(base_url=url, timeout=patience(5)) as client,
        ):
            slow = job_spec(dataset, model="org/slow")
            asked = [
                pool.submit(client.post, "/jobs", json=slow, headers=alice.headers)
                for _ in range(10)
            ]
            try:
                eventually(lambda: len(begun) >= 2)
                time.sleep(0.3)  # for the others to arrive
                answer = client.post(
                    "/jobs", json=job_spec("ds_1", model="org/model"), headers=bob.headers
                )
                assert problem_of(answer)["code"] == "not_found"  # the data set, after the model
            finally:
                gate.set()
            assert {each.result().status_code for each in asked} == {202}
