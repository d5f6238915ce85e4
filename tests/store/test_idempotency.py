"""store.idempotency: one key, one piece of work, one answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.errors import IdempotencyKeyReusedError, RequestTakenOverError
from store.idempotency import (
    RequestKey,
    begin,
    extend,
    finish,
    forget,
)
from store.jobs.actions import submit
from store.tables import IdempotencyRecord, Job
from tests.store.queues import NEW, add_tenant

ANSWER = {"status": 202, "headers": {}, "body": {"id": "job_1"}}


@pytest.fixture
def key(database: Database) -> RequestKey:
    tenant = add_tenant(database, "a")
    return RequestKey(tenant_id=tenant, method="POST", path="/jobs", key="k")


def start(database: Database, key: RequestKey, body: str = "b", *, seconds: float = 60) -> object:
    with database.write() as session:
        return begin(session, key, request_sha256=body, lock_seconds=seconds)


def end(database: Database, key: RequestKey) -> None:
    with database.write() as session:
        finish(session, key, ANSWER)


class TestBegin:
    def test_the_first_starts_and_a_twin_waits_and_replays(self, database, key):
        assert start(database, key) == "started"
        assert start(database, key) == "running"
        end(database, key)
        assert start(database, key) == ANSWER

    def test_another_body_is_refused(self, database, key):
        start(database, key)
        with pytest.raises(IdempotencyKeyReusedError, match="'k'"):
            start(database, key, "other")
        end(database, key)
        with pytest.raises(IdempotencyKeyReusedError, match="'k'"):
            start(database, key, "other")

    @pytest.mark.parametrize("field", ["method", "path", "key"])
    def test_on_another_route_it_is_another_request(self, database, key, field):
        start(database, key)
        assert start(database, replace(key, **{field: "other"}), "other") == "started"

    def test_another_tenants_is_another_request(self, database, key):
        start(database, key)
        other = add_tenant(database, "b")
        assert start(database, replace(key, tenant_id=other), "other") == "started"

    def test_a_twin_takes_over_from_one_that_died(self, database, key):
        start(database, key, seconds=0)
        time.sleep(0.01)
        assert start(database, key) == "started"
        assert start(database, key) == "running"

    def test_one_that_lives_extends_its_lock(self, database, key):
        start(database, key, seconds=0)
        with database.write() as session:
            extend(session, key, lock_seconds=60)
        time.sleep(0.01)
        assert start(database, key) == "running"

    def test_a_late_extension_changes_no_answer(self, database, key):
        start(database, key)
        end(database, key)
        with database.write() as session:
            extend(session, key, lock_seconds=60)
        assert start(database, key) == ANSWER

    def test_after_a_day_the_key_is_free(self, database, key):
        start(database, key)
        end(database, key)
        with database.write() as session:
            past = database_now(session) - timedelta(hours=25)
            session.execute(sa.update(IdempotencyRecord).values(created_at=past))
        assert start(database, key, "other") == "started"
        assert start(database, key, "other") == "running"

    def test_a_refused_request_is_not_remembered(self, database, key):
        start(database, key)
        with database.write() as session:
            forget(session, key)
        assert start(database, key, "mended") == "started"

    def test_finishing_an_unknown_request_is_refused(self, database, key):
        with pytest.raises(RequestTakenOverError):
            end(database, key)

    def test_of_two_that_took_over_from_each_other_one_gives_the_answer(self, database, key):
        start(database, key, seconds=0)
        time.sleep(0.01)
        assert start(database, key) == "started"
        end(database, key)
        with pytest.raises(RequestTakenOverError):
            end(database, key)
        assert start(database, key) == ANSWER

    def test_one_that_is_refused_late_leaves_the_twins_answer(self, database, key):
        start(database, key)
        end(database, key)
        with database.write() as session:
            forget(session, key)
        assert start(database, key) == ANSWER


class TestParallel:
    def test_fifty_twins_make_one_job(self, database, key):
        ready = threading.Barrier(10)

        def post(number: int) -> object:
            if number < 10:
                ready.wait()
            while True:
                answer = start(database, key)
                if answer == "started":
                    with database.write() as session:
                        job = submit(session, key.tenant_id, NEW, max_queued=99)
                        finish(session, key, {"body": job.id})
                elif answer != "running":
                    return answer
                time.sleep(0.005)

        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(post, range(50)))
        with database.read() as session:
            (job_id,) = session.scalars(sa.select(Job.id)).all()
        assert answers == [{"body": job_id}] * 50
