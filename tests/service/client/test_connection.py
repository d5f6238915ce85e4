"""service.client.connection: what is repeated, what is not, and how a refusal reads."""

from __future__ import annotations

import email.utils
import time

import pytest

from service.client import (
    AddressError,
    ApiError,
    BodyError,
    Client,
    UnexpectedAnswerError,
    UnreachableError,
)
from service.client.connection import ATTEMPTS
from service.embedded.listening import free_loopback_port
from tests.service.stub_server import document, hang_up, problem, reply

JOB = {"id": "job_1", "status": "queued"}
SPEC = {"model": "m", "dataset": "ds_1"}


class TestAddress:
    @pytest.mark.parametrize(
        "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://[::1"]
    )
    def test_refuses_an_invalid_url(self, url):
        with pytest.raises(AddressError, match="is not the URL of a server"):
            Client(url)

    @pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
    def test_refuses_a_key_that_no_header_can_hold_and_does_not_show_it(self, key):
        with pytest.raises(AddressError) as raised:
            Client("http://127.0.0.1:1", api_key=key)
        assert "HIFI_API_KEY" in str(raised.value)
        assert not key or key not in str(raised.value)

    def test_a_path_before_the_api_is_kept(self, stub):
        stub.on("GET", "/hifi/jobs/job_1", document(JOB))
        with Client(f"{stub.url}/hifi/") as client:
            assert client.jobs.get("job_1") == JOB

    def test_loopback_bypasses_the_proxy(self, stub, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_loopback_port()}")
        stub.on("GET", "/jobs/job_1", document(JOB))
        with Client(stub.url) as client:
            assert client.jobs.get("job_1") == JOB

    def test_an_id_is_escaped_in_the_path(self, client, stub):
        with pytest.raises(ApiError):
            client.jobs.get("../tenants?x=1")
        assert stub.paths() == ["GET /jobs/..%2Ftenants%3Fx%3D1"]


class TestBody:
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"training": {"learning_rate": float("nan")}}, "training.learning_rate=nan"),
            ({"training": [1, float("-inf")]}, "training.1=-inf"),
            ({"name": {1}}, "JSON has no set"),
        ],
    )
    def test_that_json_does_not_have_is_refused_by_its_field(self, client, stub, body, words):
        with pytest.raises(BodyError) as raised:
            client.jobs.create(body)
        assert words in str(raised.value)
        assert stub.asked == []


class TestAsk:
    def test_sends_the_key_and_the_query_without_none_values(self, client, stub):
        page = {"object": "list", "data": [], "has_more": False}
        stub.on("GET", "/jobs", document(page))
        assert client.jobs.list(status="queued", limit=3) == page
        (asked,) = stub.asked
        assert asked.path == "/jobs?status=queued&limit=3"
        assert asked.headers["authorization"] == "Bearer hifi_secret"

    def test_an_answer_without_a_body_is_none(self, client, stub):
        stub.on("DELETE", "/jobs/job_1", reply(b"", status=204))
        assert client.jobs.delete("job_1") is None

    def test_a_refusal_carries_the_servers_problem(self, client, stub):
        stub.on(
            "POST",
            "/jobs",
            problem(422, "invalid_request", "k: at least 1, not 0", param="k", x_request_id="r1"),
        )
        with pytest.raises(ApiError) as raised:
            client.jobs.create({**SPEC, "k": 0})
        error = raised.value
        assert (error.code, error.param, error.status) == ("invalid_request", "k", 422)
        assert (error.request_id, str(error)) == ("r1", "k: at least 1, not 0")
        assert len(stub.asked) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            reply(b"<html>", status=200, content_type="text/html"),
            reply(b"<html>", status=502, content_type="text/html"),
            document(["no", "problem"], status=400),
            document({"code": "x"}, status=400),
        ],
    )
    def test_an_answer_of_another_server_is_reported(self, client, stub, answer):
        stub.on("GET", "/jobs/job_1", answer)
        with pytest.raises(UnexpectedAnswerError, match="but is not a HiFi server"):
            client.jobs.get("job_1")


class TestRepetition:
    def test_a_post_with_a_key_is_repeated_with_the_same_key_and_body(self, client, stub, slept):
        stub.on("POST", "/jobs", hang_up, hang_up, document(JOB, status=202))
        assert client.jobs.create(SPEC) == JOB
        assert len({asked.headers["idempotency-key"] for asked in stub.asked}) == 1
        assert [asked.json for asked in stub.asked] == [SPEC] * 3
        assert slept == sorted(slept)

    def test_two_posts_have_two_keys(self, client, stub):
        stub.on("POST", "/jobs", document(JOB, status=202))
        client.jobs.create(SPEC)
        client.jobs.create(SPEC)
        assert len({asked.headers["idempotency-key"] for asked in stub.asked}) == 2

    def test_a_post_without_a_key_is_not_repeated_when_it_may_have_arrived(self, client, stub):
        stub.on("POST", "/jobs/job_1/cancel", hang_up)
        with pytest.raises(UnreachableError):
            client.jobs.cancel("job_1")
        assert len(stub.asked) == 1

    def test_a_dry_run_has_no_key(self, client, stub):
        stub.on("POST", "/jobs", document({"trainable_parameters": 1}))
        assert client.jobs.dry_run(SPEC) == {"trainable_parameters": 1}
        assert stub.asked[0].path == "/jobs?dry_run=true"
        assert "idempotency-key" not in stub.asked[0].headers

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_busy_server_is_retried_after_its_delay(self, client, stub, slept, status):
        busy = problem(status, "unavailable", "later", retry_after="7")
        stub.on("POST", "/jobs/job_1/cancel", busy, document(JOB))
        assert client.jobs.cancel("job_1") == JOB
        assert 7.0 <= slept[0] <= 8.4

    def test_a_retry_date_is_understood(self, client, stub, slept):
        moment = email.utils.formatdate(time.time() + 10, usegmt=True)
        stub.on(
            "GET",
            "/jobs/job_1",
            problem(503, "unavailable", "later", retry_after=moment),
            document(JOB),
        )
        client.jobs.get("job_1")
        assert 5.0 <= slept[0] <= 12.0

    def test_a_server_that_stays_busy_is_given_up(self, client, stub, slept):
        stub.on("GET", "/jobs/job_1", problem(503, "unavailable", "no database"))
        with pytest.raises(ApiError, match="no database"):
            client.jobs.get("job_1")
        assert (len(stub.asked), len(slept)) == (ATTEMPTS, ATTEMPTS - 1)

    def test_no_call_waits_for_an_hour(self, client, stub, slept):
        stub.on("GET", "/jobs/job_1", problem(503, "unavailable", "later", retry_after="3600"))
        with pytest.raises(ApiError):
            client.jobs.get("job_1")
        assert slept == []

    def test_a_full_quota_fails_at_once(self, client, stub):
        full = problem(429, "quota_exceeded", "1000 jobs are waiting already", retry_after="5")
        stub.on("POST", "/jobs", full)
        with pytest.raises(ApiError, match="1000 jobs"):
            client.jobs.create(SPEC)
        assert len(stub.asked) == 1

    def test_an_unreachable_server_is_reported_with_url_and_hint(self, slept):
        url = f"http://127.0.0.1:{free_loopback_port()}"
        with Client(url) as client:
            client._connection.sleep = slept.append
            with pytest.raises(UnreachableError) as raised:
                client.jobs.cancel("job_1")  # nothing arrived, so even this is tried again
        assert url in str(raised.value)
        assert "hifi serve" in str(raised.value)
        assert len(slept) == ATTEMPTS - 1
        assert sum(slept) < 3.0

    def test_a_timeout_is_reported_as_such(self, stub):
        def say_nothing(_handler, _asked):
            time.sleep(0.5)

        stub.on("POST", "/jobs/job_1/cancel", say_nothing)
        with (
            Client(stub.url, timeout=0.1) as client,
            pytest.raises(UnreachableError, match="did not respond in time"),
        ):
            client.jobs.cancel("job_1")
