"""service.http.replay: a request sent twice is done once, even after a crash."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from service.app import build_app
from service.http.replay import Answer, Once
from store.database.connection import Database
from store.database.schema import upgrade
from store.errors import IllegalTransitionError, ProblemError
from store.idempotency import RequestKey, begin
from store.tables import Job
from tests.databases import empty_tables
from tests.service.gateways import (
    add_backbone,
    add_dataset_row,
    add_member,
    job_spec,
    problem_of,
    served,
    settings_for,
)
from tests.waiting import patience

TWINS = 50


@pytest.fixture
def post(client, alice, database):
    dataset = add_dataset_row(database, alice)

    def post(key="k", member=alice, **changes):
        headers = {**member.headers, "Idempotency-Key": key}
        return client.post("/jobs", json=job_spec(dataset, **changes), headers=headers)

    return post


def count_jobs(database: Database) -> int:
    with database.read() as session:
        return session.scalars(sa.select(sa.func.count()).select_from(Job)).one()


class TestPosts:
    def test_the_same_request_is_answered_the_same(self, database, post, published):
        first, second = post(), post()
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.content == second.content
        assert first.headers["location"] == second.headers["location"]
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert count_jobs(database) == 1
        assert published == [1]

    def test_the_body_may_be_spelled_differently(self, client, alice, post):
        first = post(k=3, xi=0.5)
        content = first.request.content.decode()
        assert '"xi":0.5' in content.replace(" ", "")
        spread = "\n {" + content[1:].replace("0.5", "5e-1").replace(",", " ,\t")
        headers = {**alice.headers, "Idempotency-Key": "k", "content-type": "application/json"}
        second = client.post("/jobs", content=spread, headers=headers)
        assert second.content == first.content

    def test_another_body_is_refused(self, database, post):
        post(k=3)
        problem = problem_of(post(k=4))
        assert (problem["status"], problem["code"]) == (422, "idempotency_key_reused")
        assert problem["param"] == "Idempotency-Key"
        assert count_jobs(database) == 1

    def test_another_tenants_key_is_another_key(self, client, database, post, bob):
        post()
        spec = job_spec(add_dataset_row(database, bob))
        answer = client.post("/jobs", json=spec, headers={**bob.headers, "Idempotency-Key": "k"})
        assert answer.status_code == 202
        assert answer.json()["tenant"] == bob.tenant_id

    def test_a_refused_one_is_not_remembered(self, database, post):
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 0"))
        assert post().status_code == 429
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_queued = 9"))
        answer = post(k=4)
        assert answer.status_code == 202
        assert "idempotent-replayed" not in answer.headers

    def test_a_failed_one_is_not_remembered(self, database, post, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("unforeseen")

        with monkeypatch.context() as patched:
            patched.setattr("store.jobs.actions.submit", fail)
            assert post().status_code == 500
        assert post().status_code == 202
        assert count_jobs(database) == 1

    @pytest.mark.parametrize("key", ["", "a" * 256, "ü".encode("latin-1"), b"\x80", "a\tb"])
    def test_a_strange_key_is_refused(self, client, alice, key):
        headers = {**alice.headers, "Idempotency-Key": key}
        problem = problem_of(client.post("/jobs", json=job_spec("ds_1"), headers=headers))
        assert (problem["status"], problem["param"]) == (422, "Idempotency-Key")

    def test_two_keys_are_refused(self, client, alice):
        headers = [*alice.headers.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        problem = problem_of(client.post("/jobs", json=job_spec("ds_1"), headers=headers))
        assert (problem["status"], problem["param"]) == (422, "Idempotency-Key")

    def test_a_key_may_have_255_characters(self, post):
        assert post(key="a b~" * 63 + "xyz").status_code == 202


class TestCrashes:
    def test_a_twin_takes_over_when_the_lock_has_run_out(self, database, alice):
        once = once_of(database, alice, lock_seconds=0.3)
        with database.write() as session:
            begin(session, once.key, request_sha256="x", lock_seconds=0.3)  # and then it died
        answer = asyncio.run(once.answer(in_thread(work, database, name="twin")))
        assert answer.body == b'"twin"'
        assert "idempotent-replayed" not in answer.headers

    def test_one_that_takes_too_long_is_reported(self, database, alice, monkeypatch):
        monkeypatch.setattr("service.http.replay._WAIT_SECONDS", 0.3)
        once = once_of(database, alice, lock_seconds=60)
        with database.write() as session:
            begin(session, once.key, request_sha256="x", lock_seconds=60)
        with pytest.raises(ProblemError) as caught:
            asyncio.run(once.answer(in_thread(work, database, name="twin")))
        assert (caught.value.status, caught.value.code) == (409, "idempotency_in_progress")
        assert caught.value.headers["Retry-After"]

    def test_one_that_was_overtaken_gives_the_twins_answer(self, database, alice, monkeypatch):
        # The first stalls, with its lock, until that has run out and a twin has answered.
        monkeypatch.setattr(Once, "_lock_again", lambda *_: None)
        overtaken = threading.Event()

        def slow(keep):
            assert overtaken.wait(patience(10))
            return work(database, keep, name="slow")

        async def run() -> tuple[bytes, bytes]:
            once = once_of(database, alice, lock_seconds=0.05)
            first = asyncio.create_task(once.answer(in_thread(slow)))
            await asyncio.sleep(0.2)
            second = await once.answer(in_thread(work, database, name="quick"))
            overtaken.set()
            return (await first).body, second.body

        assert asyncio.run(run()) == (b'"quick"', b'"quick"')

    def test_its_refusal_leaves_the_twins_answer(self, database, alice):
        once = once_of(database, alice, lock_seconds=60)

        def refused(keep):
            work(database, keep, name="done")
            raise IllegalTransitionError("late")

        with pytest.raises(IllegalTransitionError):
            asyncio.run(once.answer(in_thread(refused)))
        assert asyncio.run(once.answer(in_thread(refused))).body == b'"done"'

    def test_one_that_works_for_long_keeps_its_lock(self, database, alice):
        twins_turn = threading.Event()

        def slow(keep):
            assert twins_turn.wait(patience(10))
            return work(database, keep, name="slow")

        async def run() -> tuple[bytes, bytes]:
            once = once_of(database, alice, lock_seconds=2)
            first = asyncio.create_task(once.answer(in_thread(slow)))
            await asyncio.sleep(3)
            second = asyncio.create_task(once.answer(in_thread(work, database, name="twin")))
            await asyncio.sleep(0.5)
            twins_turn.set()
            return (await first).body, (await second).body

        assert asyncio.run(run()) == (b'"slow"', b'"slow"')

    def test_one_whose_caller_leaves_frees_its_key(self, database, alice):
        async def run() -> bytes:
            once = once_of(database, alice, lock_seconds=60)
            begun = asyncio.Event()

            async def endless(_keep):
                begun.set()
                await asyncio.sleep(600)

            first = asyncio.create_task(once.answer(endless))
            await begun.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            return (await once.answer(in_thread(work, database, name="twin"))).body

        assert asyncio.run(run()) == b'"twin"'


def once_of(database, member, *, lock_seconds) -> Once:
    key = RequestKey(tenant_id=member.tenant_id, method="POST", path="/datasets", key="k")
    return Once(database=database, key=key, request_sha256="x", lock_seconds=lock_seconds)


def in_thread(work, *arguments, **options):
    """Make work of a function that blocks."""
    return lambda keep: asyncio.to_thread(work, *arguments, keep, **options)


def work(database, keep, *, name) -> Answer:
    with database.write() as session:
        answer = Answer(status=201, body=f'"{name}"')
        keep(session, answer)
    return answer


@pytest.fixture(params=["sqlite", "postgres"])
def server(request, tmp_path: Path) -> Iterator[tuple[str, Database]]:
    """Serve a gateway over a real socket, on each kind of database."""
    if request.param == "sqlite":
        url = request.getfixturevalue("sqlite_url")
    else:
        url = request.getfixturevalue("postgres_url")
        upgrade(url)
    database = Database(url)
    try:
        with served(build_app(settings_for(tmp_path / "home", url))) as address:
            yield address, database
    finally:
        if request.param == "postgres":  # other tests of this run use it
            empty_tables(database)
        database.close()


class TestParallel:
    def test_fifty_twins_make_one_job(self, server):
        url, database = server
        alice = add_member(database, "alice")
        add_backbone(database)
        spec = job_spec(add_dataset_row(database, alice))
        ready = threading.Barrier(TWINS)

        def post(_: int) -> httpx2.Response:
            with httpx2.Client(timeout=patience(60)) as client:
                ready.wait()
                headers = {**alice.headers, "Idempotency-Key": "one"}
                return client.post(f"{url}/jobs", json=spec, headers=headers)

        with ThreadPoolExecutor(TWINS) as pool:
            answers = list(pool.map(post, range(TWINS)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        assert count_jobs(database) == 1
