"""service.client.watching: every event once, in order, through any lost connection."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest

from service.client import ApiError, UnexpectedAnswerError, UnreachableError
from service.client import watching as module
from tests.service.stub_server import (
    broken_stream,
    document,
    event_stream,
    hang_up,
    problem,
    reply,
)

JOB = "/jobs/job_1"
EVENTS = f"{JOB}/events"


def event(number, *, status=None):
    """Make an event."""
    return {
        "id": f"evt_1_{number}",
        "object": "job.event",
        "created_at": "2026-01-01T00:00:00Z",
        "level": "info",
        "type": "status" if status else "message",
        "message": f"event {number}",
        "data": {"status": status} if status else {},
    }


def sent(number, **of):
    """Format an event as the server sends it."""
    content = event(number, **of)
    return f"id: {content['id']}\ndata: {json.dumps(content)}\n\n"


LAST = sent(9, status="succeeded")


def looks(stub, *statuses):
    stub.on("GET", JOB, *(document({"id": "job_1", "status": status}) for status in statuses))


def ids(events):
    return [entry["id"].removeprefix("evt_1_") for entry in events]


def resumed_from(stub):
    streams = [asked for asked in stub.asked if asked.path == EVENTS]
    return [asked.headers.get("last-event-id") for asked in streams]


class TestWatch:
    def test_gives_the_events_until_the_job_is_finished(self, client, stub):
        looks(stub, "training")
        stub.on("GET", EVENTS, event_stream(sent(1), ": ping\n\n", sent(2), LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "2", "9"]
        assert resumed_from(stub) == [None]
        assert stub.asked[-1].headers["accept"] == "text/event-stream"

    def test_resumes_after_the_last_event_when_the_connection_breaks(self, client, stub, slept):
        looks(stub, "training")
        stub.on(
            "GET",
            EVENTS,
            broken_stream(sent(1), sent(2)),
            hang_up,
            broken_stream(),
            event_stream(sent(3), LAST),
        )
        assert ids(client.jobs.watch("job_1")) == ["1", "2", "3", "9"]
        assert resumed_from(stub) == [None, "evt_1_2", "evt_1_2", "evt_1_2"]
        assert slept

    def test_half_an_event_is_none(self, client, stub):
        looks(stub, "training")
        half = sent(2)[: len(sent(2)) // 2]
        stub.on("GET", EVENTS, broken_stream(sent(1), half), event_stream(sent(2), LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "2", "9"]

    def test_an_event_that_comes_twice_is_given_once(self, client, stub):
        looks(stub, "training")
        stub.on(
            "GET", EVENTS, broken_stream(sent(1), sent(2)), event_stream(sent(2), sent(3), LAST)
        )
        assert ids(client.jobs.watch("job_1")) == ["1", "2", "3", "9"]

    def test_a_stream_that_ends_early_is_taken_up_again(self, client, stub):
        looks(stub, "training")
        stub.on("GET", EVENTS, event_stream(sent(1)), event_stream(), event_stream(LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "9"]

    def test_a_job_that_finished_meanwhile_still_tells_its_end(self, client, stub):
        looks(stub, "training", "succeeded")
        stub.on("GET", EVENTS, event_stream(sent(1)), event_stream(LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "9"]

    def test_begins_behind_an_event_and_ends_where_nothing_is_left(self, client, stub):
        looks(stub, "succeeded")
        stub.on("GET", EVENTS, event_stream())
        assert ids(client.jobs.watch("job_1", after="evt_1_9")) == []
        assert resumed_from(stub) == ["evt_1_9"]

    def test_progress_is_reported_and_is_no_event(self, client, stub):
        looks(stub, "training")
        progress = {"phase": "training", "step": 3, "total_steps": 9, "eta_seconds": 1.5}
        message = f"event: progress\ndata: {json.dumps(progress)}\n\n"
        unknown = "event: weather\ndata: sunny\n\n"
        stub.on("GET", EVENTS, event_stream(sent(1), message, unknown, LAST))
        told = []
        assert ids(client.jobs.watch("job_1", on_progress=told.append)) == ["1", "9"]
        assert told == [progress]

    def test_a_server_that_restarts_is_waited_for(self, client, stub):
        looks(stub, "training")
        away = [hang_up] * 12
        stub.on(
            "GET",
            EVENTS,
            broken_stream(sent(1)),
            *away,
            problem(503, "unavailable", "no database"),
            event_stream(LAST),
        )
        assert ids(client.jobs.watch("job_1")) == ["1", "9"]

    def test_a_server_that_has_no_room_for_a_stream_yet_is_waited_for(self, client, stub):
        looks(stub, "training")
        busy = problem(429, "too_many_streams", "all in use", retry_after="1")
        stub.on("GET", EVENTS, broken_stream(sent(1)), busy, busy, event_stream(LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "9"]

    def test_one_that_stays_away_is_given_up(self, client, stub, monkeypatch):
        clock = itertools.count(0.0, 25.0)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        looks(stub, "training")
        stub.on("GET", EVENTS, broken_stream(sent(1)), hang_up)
        with pytest.raises(UnreachableError):
            list(client.jobs.watch("job_1"))

    def test_a_job_that_waits_for_hours_is_not_given_up_for_it(self, client, stub, monkeypatch):
        clock = itertools.count(0.0, 3600.0)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        looks(stub, "queued")
        stub.on("GET", EVENTS, broken_stream(sent(1)), broken_stream(), event_stream(LAST))
        assert ids(client.jobs.watch("job_1")) == ["1", "9"]

    def test_an_unknown_job_fails_at_once(self, client, stub):
        with pytest.raises(ApiError) as raised:
            list(client.jobs.watch("job_2"))
        assert raised.value.status == 404
        assert len(stub.asked) == 1

    def test_a_job_deleted_meanwhile_is_reported(self, client, stub):
        stub.on(
            "GET",
            JOB,
            document({"id": "job_1", "status": "queued"}),
            problem(404, "not_found", "there is no job 'job_1'"),
        )
        stub.on("GET", EVENTS, event_stream(sent(1)))
        events = client.jobs.watch("job_1")
        assert next(events)["id"] == "evt_1_1"
        with pytest.raises(ApiError, match="there is no job"):
            next(events)

    @pytest.mark.parametrize(
        "answer",
        [
            event_stream("data: [1]\n\n"),
            event_stream('data: {"id": 1}\n\n'),
            event_stream("data: {half\n\n"),
            reply(b"{}", content_type="application/json"),
        ],
    )
    def test_an_answer_that_is_no_event_stream_is_reported(self, client, stub, answer):
        looks(stub, "training")
        stub.on("GET", EVENTS, answer)
        with pytest.raises(UnexpectedAnswerError):
            list(client.jobs.watch("job_1"))
