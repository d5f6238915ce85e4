from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

import service.app
from service.http.shares import Share, Shares
from service.jobs import events as events_module
from service.jobs import tailer as tailer_module
from service.jobs.tailer import Tailer
from store.administration.keys import revoke_key
from store.database.connection import Database
from store.jobs.actions import delete
from store.jobs.leases import Progress
from store.jobs.life import lock_job, move
from store.states import JobStatus
from store.tenants import ensure_tenant, resume_tenant, suspend_tenant
from tests.service.gateways import Member, problem_of, served
from tests.service.test_server import environment, gateway
from tests.service.work import running_job, running_to_failure, step
from tests.store.queues import add_job
from tests.waiting import eventually, patience, within

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from store.settings import Settings

__all__ = ["environment"]

STREAM = {"Accept": "text/event-stream"}
SECONDS = 20.0


@pytest.fixture
def tailers(monkeypatch: pytest.MonkeyPatch) -> list[Tailer]:
    """Return the list of tailers of the gateways that a test starts."""
    made: list[Tailer] = []

    class Noted(Tailer):
        def __init__(self, database: Database) -> None:
            super().__init__(database, interval=0.05)
            made.append(self)

    monkeypatch.setattr(service.app, "Tailer", Noted)
    return made


@pytest.fixture
def url(
    settings: Settings,
    database: Database,  # noqa: ARG001 - made first
    tailers: list[Tailer],  # noqa: ARG001 - as above
) -> Iterator[str]:
    """Yield the URL of a gateway that listens."""
    with served(service.app.build_app(settings)) as url:
        yield url


def streams_of(tailer: Tailer) -> int:
    return sum(feed.streams for feed in list(tailer._feeds.values()))


def fail(database: Database, job_id: str) -> None:
    with database.write() as session:
        move(session, lock_job(session, job_id), JobStatus.FAILED, message="the end")


class Stream:
    """A stream of events on its own connection."""

    def __init__(self, url: str, job_id: str, member: Member, **headers: str) -> None:
        self._client = httpx2.Client(base_url=url, timeout=patience(SECONDS))
        headers = {**STREAM, **member.headers, **headers}
        self._request = self._client.build_request("GET", f"/jobs/{job_id}/events", headers=headers)

    def __enter__(self) -> Iterator[httpx2.ServerSentEvent]:
        response = self._client.send(self._request, stream=True)
        assert response.status_code == 200, response.read()
        return iter(httpx2.EventSource(response))

    def __exit__(self, *_: object) -> None:
        self._client.close()


def documents(messages: Iterator[httpx2.ServerSentEvent]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if message.event == "message":
            yield json.loads(message.data)


def number_of(document: dict[str, Any]) -> int:
    return int(document["id"].rpartition("_")[2])


class TestList:
    def test_is_oldest_first_in_the_envelope_of_lists(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        lease.report(Progress(), events=[step(1)])
        answer = client.get(f"/jobs/{job_id}/events", headers=alice.headers)
        assert answer.status_code == 200
        page = answer.json()
        suffix = job_id.removeprefix("job_")
        ids = [f"evt_{suffix}_{number}" for number in (1, 2, 3)]
        assert {name: page[name] for name in page if name != "data"} == {
            "object": "list",
            "has_more": False,
            "first_id": ids[0],
            "last_id": ids[-1],
        }
        assert [event["id"] for event in page["data"]] == ids
        last = page["data"][-1]
        created = datetime.fromisoformat(last.pop("created_at"))
        assert abs((datetime.now(UTC) - created).total_seconds()) < 60
        assert last == {
            "id": ids[-1],
            "object": "job.event",
            "level": "info",
            "type": "step",
            "message": "step 1/100",
            "data": {"step": 1, "total_steps": 100, "loss": 1.0},
        }

    def test_continues_after_an_event(self, client: TestClient, database: Database, alice: Member):
        job_id, lease = running_job(database, alice.tenant_id)
        lease.report(Progress(), events=[step(number) for number in range(1, 6)])
        seen: list[int] = []
        after: str | None = None
        while True:
            query = {"limit": "3", **({"after": after} if after else {})}
            page = client.get(f"/jobs/{job_id}/events", params=query, headers=alice.headers).json()
            seen += map(number_of, page["data"])
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == [1, 2, 3, 4, 5, 6, 7]
        page = client.get(
            f"/jobs/{job_id}/events", params={"after": after}, headers=alice.headers
        ).json()
        assert (page["data"], page["first_id"], page["last_id"]) == ([], None, None)

    @pytest.mark.parametrize("as_stream", [False, True])
    def test_refuses_an_unknown_event_to_continue_after(
        self, client: TestClient, database: Database, alice: Member, bob: Member, as_stream: bool
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        other_id, _ = running_job(database, bob.tenant_id)
        own, other = (name.removeprefix("job_") for name in (job_id, other_id))
        wrong = [
            *(f"evt_{other}_1", f"evt_{own}_3", f"evt_{own}_0", f"evt_{own}_-1", f"evt_{own}_01"),
            *(f"evt_{own}_", f"evt_{own}_1x", f"evt_{own}_{'9' * 100}", "1", "evt_", job_id),
            *("evt_%_1", "x" * 200),
        ]
        for after in wrong:
            if as_stream:
                headers = {**alice.headers, **STREAM, "Last-Event-ID": after}
                answer = client.get(f"/jobs/{job_id}/events", headers=headers)
                param = "Last-Event-ID"
            else:
                answer = client.get(
                    f"/jobs/{job_id}/events", params={"after": after}, headers=alice.headers
                )
                param = "after"
            problem = problem_of(answer)
            assert (problem["status"], problem["code"]) == (404, "not_found"), after
            assert problem["param"] == param

    @pytest.mark.parametrize("headers", [{}, STREAM])
    def test_is_for_the_owner_alone(
        self,
        client: TestClient,
        database: Database,
        alice: Member,
        bob: Member,
        headers: dict[str, str],
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        theirs = client.get(f"/jobs/{job_id}/events", headers={**bob.headers, **headers})
        none = client.get(f"/jobs/job_{'x' * 24}/events", headers={**bob.headers, **headers})
        for answer in (theirs, none):
            problem = problem_of(answer)
            assert (problem["status"], problem["code"]) == (404, "not_found")
        assert problem_of(client.get(f"/jobs/{job_id}/events", headers=headers))["status"] == 401


class TestStream:
    def test_of_a_finished_job_gives_all_and_ends(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        lease.fail(code="out_of_memory", message="größer als\nder Speicher")
        listed = client.get(f"/jobs/{job_id}/events", headers=alice.headers).json()["data"]
        answer = client.get(f"/jobs/{job_id}/events", headers={**alice.headers, **STREAM})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        *_, last, nothing = answer.text.split("\n\n")
        assert nothing == ""
        assert last.startswith(f"id: {listed[-1]['id']}\ndata: ")
        messages = list(documents(httpx2.EventSource(answer)))
        assert messages == listed

    def test_resumes_after_the_last_event_id(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        fail(database, job_id)
        listed = client.get(f"/jobs/{job_id}/events", headers=alice.headers).json()["data"]

        def behind(query: dict[str, str], **headers: str) -> list[int]:
            answer = client.get(
                f"/jobs/{job_id}/events",
                params=query,
                headers={**alice.headers, **STREAM, **headers},
            )
            return [number_of(event) for event in documents(httpx2.EventSource(answer))]

        first, second = listed[0]["id"], listed[1]["id"]
        assert behind({"after": first}) == [2, 3]
        assert behind({}, **{"Last-Event-ID": second}) == [3]
        assert behind({"after": first}, **{"Last-Event-ID": second}) == [3]
        assert behind({"after": first}, **{"Last-Event-ID": ""}) == [2, 3]

    def test_is_live(self, url: str, database: Database, alice: Member):
        job_id, lease = running_job(database, alice.tenant_id)
        with Stream(url, job_id, alice) as messages:
            seen = documents(messages)
            assert [number_of(next(seen)) for _ in range(2)] == [1, 2]
            for number in range(1, 4):
                lease.report(Progress(), events=[step(number)])
                with within(1.0):
                    assert next(seen)["data"]["step"] == number
            lease.fail(code="out_of_memory", message="too large")
            assert [number_of(event) for event in seen] == [6]

    def test_sends_the_progress_that_the_job_shows(
        self, url: str, client: TestClient, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)

        def shown() -> Any:
            return client.get(f"/jobs/{job_id}", headers=alice.headers).json()["progress"]

        with Stream(url, job_id, alice) as messages:
            told = (json.loads(seen.data) for seen in messages if seen.event == "progress")
            assert next(told) == shown()
            lease.report(Progress(phase="training", step=3, total_steps=8, eta_seconds=2.5))
            now = next(told)
            assert now == shown()
            assert now["fraction"] == 0.375

    def test_progress_has_no_id_of_its_own(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        fail(database, job_id)
        answer = client.get(f"/jobs/{job_id}/events", headers={**alice.headers, **STREAM})
        blocks = answer.text.split("\n\n")
        (progress,) = [block for block in blocks if "event: progress" in block]
        assert not re.search("^id:", progress, re.MULTILINE)

    def test_shows_a_sign_of_life(
        self, monkeypatch: pytest.MonkeyPatch, url: str, database: Database, alice: Member
    ):
        monkeypatch.setattr(events_module, "PING_SECONDS", 0.1)
        job_id, _ = running_job(database, alice.tenant_id)
        with (
            httpx2.Client(base_url=url) as client,
            client.stream(
                "GET", f"/jobs/{job_id}/events", headers={**alice.headers, **STREAM}
            ) as answer,
        ):
            assert ": ping" in (line for line in answer.iter_lines())

    def test_loses_and_repeats_nothing_over_many_connections(
        self, url: str, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        count = 100
        got: list[int] = []
        headers: dict[str, str] = {}
        with running_to_failure(lease, steps=count, pause=0.005):
            while not got or got[-1] < count + 3:
                with Stream(url, job_id, alice, **headers) as messages:
                    for event in islice(documents(messages), 9):
                        got.append(number_of(event))
                        headers = {"Last-Event-ID": event["id"]}
        assert got == list(range(1, count + 4))

    def test_serves_two_hundred_at_once(
        self, url: str, tailers: list[Tailer], database: Database, alice: Member, bob: Member
    ):
        jobs = [(member, *running_job(database, member.tenant_id)) for member in (alice, bob)]

        async def follow(client: httpx2.AsyncClient, member: Member, job_id: str) -> list[int]:
            headers = {**member.headers, **STREAM}
            async with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
                assert answer.status_code == 200
                return [
                    number_of(json.loads(message.data))
                    async for message in httpx2.EventSource(answer)
                    if message.event == "message"
                ]

        async def watch() -> list[list[int]]:
            limits = httpx2.Limits(max_connections=None)
            async with httpx2.AsyncClient(
                base_url=url, timeout=patience(SECONDS), limits=limits
            ) as client:
                streams = [
                    asyncio.create_task(follow(client, member, job_id))
                    for member, job_id, _ in jobs
                    for _ in range(100)
                ]
                await asyncio.to_thread(eventually, lambda: streams_of(tailers[0]) == 200)
                for _, _, lease in jobs:
                    for number in range(1, 21):
                        await asyncio.to_thread(lease.report, Progress(), events=[step(number)])
                    await asyncio.to_thread(lease.fail, code="x", message="the end")
                return await asyncio.gather(*streams)

        assert asyncio.run(watch()) == [list(range(1, 24))] * 200

    def test_ends_when_the_job_is_deleted(self, url: str, database: Database, alice: Member):
        job_id, _ = running_job(database, alice.tenant_id)
        with Stream(url, job_id, alice) as messages:
            assert number_of(next(documents(messages))) == 1
            with database.write() as session:
                lock_job(session, job_id).status = JobStatus.CANCELLED
                delete(session, alice.tenant_id, job_id)
            assert {number_of(event) for event in documents(messages)} <= {2}

    def test_ends_soon_after_the_key_is_revoked(
        self, url: str, database: Database, alice: Member, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.2)
        job_id, _ = running_job(database, alice.tenant_id)
        with Stream(url, job_id, alice) as messages:
            assert number_of(next(documents(messages))) == 1
            with database.write() as session:
                revoke_key(session, alice.key_id)
            assert [number_of(event) for event in documents(messages)] == [2]

    def test_is_refused_while_the_tenant_is_suspended_and_open_again_when_it_is_resumed(
        self, url: str, database: Database, alice: Member, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tailer_module, "_RECHECK_SECONDS", 0.2)
        job_id, _ = running_job(database, alice.tenant_id)
        with Stream(url, job_id, alice) as messages:
            assert number_of(next(documents(messages))) == 1
            with database.write() as session:
                suspend_tenant(session, alice.tenant_id)
            assert [number_of(event) for event in documents(messages)] == [2]
        answer = httpx2.get(f"{url}/jobs/{job_id}/events", headers={**STREAM, **alice.headers})
        assert problem_of(answer)["code"] == "tenant_suspended"
        with database.write() as session:
            resume_tenant(session, alice.tenant_id)
        with Stream(url, job_id, alice) as messages:
            assert number_of(next(documents(messages))) == 1
            fail(database, job_id)
            assert [number_of(event) for event in documents(messages)] == [2, 3]

    def test_leaves_nothing_behind_when_the_client_goes(
        self, url: str, tailers: list[Tailer], database: Database, alice: Member
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        for _ in range(3):
            with Stream(url, job_id, alice) as messages:
                next(documents(messages))
                assert streams_of(tailers[0]) == 1
            eventually(lambda: not tailers[0]._feeds and tailers[0]._polling is None)


class TestShare:
    @pytest.fixture(autouse=True)
    def _two_streams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        share = Share(2, code="too_many_streams", what="streams of events")
        shares = Shares()
        shares.streams = share
        monkeypatch.setattr(service.app, "Shares", lambda: shares)

    def test_one_stream_more_than_a_tenant_may_have_is_refused(
        self, url: str, database: Database, alice: Member, bob: Member
    ):
        job_id, _ = running_job(database, alice.tenant_id)
        other_id, _ = running_job(database, bob.tenant_id)
        events = f"{url}/jobs/{job_id}/events"
        with Stream(url, job_id, alice) as first:
            next(first)
            with Stream(url, job_id, alice) as second:
                next(second)
                answer = httpx2.get(events, headers={**alice.headers, **STREAM})
                problem = problem_of(answer)
                assert (problem["status"], problem["code"]) == (429, "too_many_streams")
                assert int(answer.headers["retry-after"]) > 0
                assert httpx2.get(events, headers=alice.headers).status_code == 200  # the list
                with Stream(url, other_id, bob) as theirs:
                    next(theirs)

            def can_follow() -> bool:
                headers = {**alice.headers, **STREAM}
                with httpx2.stream("GET", events, headers=headers) as answer:
                    return answer.status_code == 200

            eventually(can_follow)  # soon after one has gone

    def test_a_refused_stream_takes_none_of_it(self, url: str, alice: Member):
        events = f"{url}/jobs/job_{'x' * 24}/events"
        for _ in range(3):
            answer = httpx2.get(events, headers={**alice.headers, **STREAM})
            assert problem_of(answer)["status"] == 404


@pytest.mark.process
class TestShutdown:
    def test_ends_the_streams_cleanly(self, environment: dict[str, str], sqlite_url: str):
        database = Database(sqlite_url)
        with (
            gateway(environment) as (process, url),
            httpx2.Client(base_url=url, timeout=patience(SECONDS), trust_env=False) as client,
        ):
            with database.write() as session:
                tenant_id = ensure_tenant(session, "default", is_admin=True).id
            job_id = add_job(database, tenant_id)
            with client.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as answer:
                messages = documents(iter(httpx2.EventSource(answer)))
                assert number_of(next(messages)) == 1
                process.send_signal(signal.SIGTERM)
                assert list(messages) == []  # and no broken connection
            _, err = process.communicate(timeout=patience(SECONDS))
        database.close()
        assert process.returncode == 0
        assert "without completing" not in err
