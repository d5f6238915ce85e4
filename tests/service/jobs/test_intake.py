"""service.jobs.intake: jobs that come at once are queued at once, each as if it had come alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import sqlalchemy as sa

from service.http.replay import Answer
from service.jobs.intake import Intake, Posting
from service.jobs.task_completion import complete_task
from store.errors import IdempotencyKeyReusedError, NotFoundError, QuotaExceededError
from store.idempotency import KeyedRequest, RequestKey
from store.problems import ProblemError
from store.spec import JobSpec
from store.tables import IdempotencyRecord, Job, JobEvent
from tests.service.gateways import MODEL, add_dataset_row, add_member


class Publisher:
    """Counts tokens."""

    def __init__(self):
        self.counts = []

    def publish(self, count=1):
        self.counts.append(count)


@pytest.fixture
def publisher():
    return Publisher()


@pytest.fixture
def intake(database, settings, publisher):
    return Intake(database=database, settings=settings, publisher=publisher)


@pytest.fixture
def posting(database, alice):
    dataset = add_dataset_row(database, alice)

    def posting(*, key=None, sha256="x", **changes):
        spec = JobSpec.model_validate({"model": MODEL, "dataset": dataset, **changes})
        name = RequestKey(tenant_id=alice.tenant_id, method="POST", path="/jobs", key=key or "")
        request = None if key is None else KeyedRequest(key=name, sha256=sha256)
        return Posting(tenant_id=alice.tenant_id, spec=spec, request=request)

    return posting


def post(intake, *postings):
    """Post all at once; give answers and refusals in their order."""

    async def run():
        return await asyncio.gather(*map(intake.post, postings), return_exceptions=True)

    return asyncio.run(run())


def rows(database, table):
    with database.read() as session:
        return session.scalars(sa.select(table)).all()


class TestBatches:
    def test_each_posting_becomes_its_own_job(self, intake, database, posting, publisher):
        answers = post(intake, *(posting(name=str(number)) for number in range(5)))
        documents = [json.loads(answer.body) for answer in answers]
        assert [document["name"] for document in documents] == list("01234")
        assert {job.id for job in rows(database, Job)} == {one["id"] for one in documents}
        assert sum(publisher.counts) == 5
        events = rows(database, JobEvent)
        assert [(event.number, event.type, event.data) for event in events] == [
            (1, "status", {"status": "queued"})
        ] * 5

    def test_a_refused_one_takes_no_other_with_it(self, intake, database, posting, publisher):
        good, bad, unknown = posting(), posting(model="none"), posting(dataset="ds_none")
        first, refusal, missing, last = post(intake, good, bad, unknown, good)
        assert isinstance(first, Answer)
        assert isinstance(last, Answer)
        assert isinstance(refusal, ProblemError)
        assert isinstance(missing, NotFoundError)
        assert len(rows(database, Job)) == 2
        assert sum(publisher.counts) == 2

    def test_the_quota_holds_within_a_batch(self, intake, database, posting):
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 2"))
        answers = post(intake, *(posting() for _ in range(4)))
        assert sum(isinstance(answer, Answer) for answer in answers) == 2
        assert sum(isinstance(answer, QuotaExceededError) for answer in answers) == 2
        assert len(rows(database, Job)) == 2

    def test_tenants_do_not_mix(self, intake, database, posting):
        bob = add_member(database, "bob")
        mine = posting()
        theirs = replace(mine, tenant_id=bob.tenant_id)
        first, refusal = post(intake, mine, theirs)
        assert isinstance(first, Answer)
        assert isinstance(refusal, NotFoundError)
        own = JobSpec(model=MODEL, dataset=add_dataset_row(database, bob))
        first, second = post(intake, mine, Posting(tenant_id=bob.tenant_id, spec=own, request=None))
        assert json.loads(second.body)["tenant"] == bob.tenant_id
        assert json.loads(first.body)["tenant"] != bob.tenant_id


class TestCompletions:
    """service.jobs.admission.Completions: what is worked out of a data set is worked out once."""

    @pytest.fixture
    def worked_out(self, monkeypatch):
        """List for which label columns a task is completed."""
        seen = []

        def complete(fields, profile):
            seen.append(fields.label)
            return complete_task(fields, profile)

        monkeypatch.setattr("service.jobs.admission.complete_task", complete)
        return seen

    def test_a_task_is_completed_once_and_a_refusal_each_time(self, intake, posting, worked_out):
        answers = post(intake, *(posting(k=k, task={"label": "label"}) for k in (1, 2, 3)))
        assert [json.loads(answer.body)["spec"]["k"] for answer in answers] == [1, 2, 3]
        assert worked_out == ["label"]
        refusals = post(intake, *(posting(task={"label": "none"}) for _ in range(2)))
        assert {refusal.code for refusal in refusals} == {"column_not_found"}
        assert worked_out == ["label", "none", "none"]

    def test_each_data_set_has_its_own(self, intake, database, alice, posting, worked_out):
        other = add_dataset_row(database, alice)
        post(intake, posting(), posting(dataset=other), posting(dataset=other))
        assert len(worked_out) == 2

    def test_only_the_last_ones_are_kept(self, intake, posting, worked_out, monkeypatch):
        monkeypatch.setattr("service.jobs.admission._COMPLETIONS", 1)
        for label in ("label", None, "label"):
            post(intake, posting(task={"label": label}))
        assert len(worked_out) == 3


class TestKeys:
    def test_twins_in_one_batch_are_one_job(self, intake, database, posting, publisher):
        one, *others = post(intake, *(posting(key="k") for _ in range(5)))
        assert len(rows(database, Job)) == 1
        assert sum(publisher.counts) == 1
        assert "Idempotent-Replayed" not in one.headers
        for other in others:
            assert other.body == one.body
            assert other.headers["Idempotent-Replayed"] == "true"

    def test_a_twin_with_another_body_is_refused(self, intake, database, posting):
        one, other = post(intake, posting(key="k"), posting(key="k", sha256="y", k=5))
        assert isinstance(one, Answer)
        assert isinstance(other, IdempotencyKeyReusedError)
        (later,) = post(intake, posting(key="k", sha256="y", k=5))
        assert isinstance(later, IdempotencyKeyReusedError)
        assert len(rows(database, Job)) == 1

    def test_of_a_refused_one_nothing_is_kept(self, intake, database, posting):
        one, twin, other = post(
            intake,
            posting(key="k", model="none"),
            posting(key="k", model="none"),
            posting(key="k", sha256="y"),
        )
        assert (one.code, twin.code) == ("model_not_found", "model_not_found")
        # Whether the key is free is not known before the first one ends.
        assert (other.status, other.code) == (409, "idempotency_in_progress")
        assert rows(database, IdempotencyRecord) == []
        (later,) = post(intake, posting(key="k", sha256="y"))
        assert isinstance(later, Answer)

    def test_a_key_is_free_again_after_a_day(self, intake, database, posting):
        (first,) = post(intake, posting(key="k"))
        with database.write() as session:
            session.execute(sa.text("UPDATE idempotency_records SET created_at = '2001-01-01'"))
        (second,) = post(intake, posting(key="k", sha256="y"))
        assert second.body != first.body
        (third,) = post(intake, posting(key="k", sha256="y"))
        assert third.body == second.body


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Stand for the hub; list what it was asked."""
        asked = []

        def pin(_hub, model):
            asked.append(model)
            if model == "far/away":
                raise ProblemError("hub_unavailable", status=422, detail="the hub is away")
            return "c" * 40

        monkeypatch.setattr("service.jobs.hub.HuggingFaceHub.pin_model", pin)
        return asked

    @pytest.fixture
    def intake(self, database, settings, publisher):
        open_settings = settings.model_copy(update={"allow_hub": True})
        return Intake(database=database, settings=open_settings, publisher=publisher)

    def test_it_is_asked_before_the_batch_and_once(self, intake, database, posting, asked):
        (answer,) = post(intake, posting(model="org/model"))
        (job,) = rows(database, Job)
        assert json.loads(answer.body)["id"] == job.id
        assert (job.revision, job.needs_hub) == ("c" * 40, True)
        assert asked == ["org/model"]

    def test_an_answer_is_replayed_without_it(self, intake, posting, asked):
        (first,) = post(intake, posting(model="org/model", key="k"))
        (second,) = post(intake, posting(model="org/model", key="k"))
        assert second.body == first.body
        assert asked == ["org/model"]
        (other,) = post(intake, posting(model="org/model", key="k", sha256="y"))
        assert isinstance(other, IdempotencyKeyReusedError)

    def test_one_that_waits_for_it_in_vain_is_alone(self, intake, posting, asked):
        refusal, answer = post(intake, posting(model="far/away"), posting())
        assert isinstance(refusal, ProblemError)
        assert isinstance(answer, Answer)
        assert asked == ["far/away"]
