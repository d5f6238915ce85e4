"""service.client: predictions are asked again when the connection breaks, and waited for."""

from __future__ import annotations

import pytest

from service.client import ApiError, UnreachableError
from service.client.connection import ATTEMPTS
from tests.service.stub_server import document, hang_up, problem

PATH = "/jobs/job_1/predict"
INPUTS = [{"text": "a"}, {"text": "b", "text_pair": "c"}, {"image": "aGk="}]
ANSWER = {"object": "list", "data": [{"index": 0, "job": "job_1", "value": 1.0}]}


class TestPredict:
    def test_of_one_job(self, client, stub):
        stub.on("POST", PATH, document(ANSWER))
        assert client.jobs.predict("job_1", INPUTS) == ANSWER
        client.jobs.predict("job_1", tuple(INPUTS[:1]), truncate=False, timeout_seconds=5)
        assert [asked.json for asked in stub.asked] == [
            {"inputs": INPUTS, "truncate": True},
            {"inputs": INPUTS[:1], "truncate": False, "timeout_seconds": 5},
        ]

    def test_of_many_jobs(self, client, stub):
        stub.on("POST", "/predict", document(ANSWER))
        items = [{"job": "job_1", "input": given} for given in INPUTS]
        assert client.predict(items, timeout_seconds=5) == ANSWER
        assert [asked.json for asked in stub.asked] == [
            {"inputs": items, "truncate": True, "timeout_seconds": 5}
        ]

    def test_is_repeated_when_the_connection_breaks(self, client, stub):
        stub.on("POST", PATH, hang_up, hang_up, document(ANSWER))
        assert client.jobs.predict("job_1", INPUTS) == ANSWER
        assert [asked.json["inputs"] for asked in stub.asked] == [INPUTS] * 3
        assert not any("idempotency-key" in asked.headers for asked in stub.asked)
        stub.on("POST", "/predict", hang_up)
        with pytest.raises(UnreachableError):
            client.predict([{"job": "job_1", "input": INPUTS[0]}])
        assert stub.paths().count("POST /predict") == ATTEMPTS

    def test_waits_as_long_as_a_busy_server_asks(self, client, stub, slept):
        busy = problem(429, "too_many_requests", "9000 inputs wait", retry_after="7")
        stub.on("POST", PATH, busy, document(ANSWER))
        assert client.jobs.predict("job_1", INPUTS) == ANSWER
        assert len(slept) == 1
        assert slept[0] >= 7

    def test_a_refusal_is_not_repeated(self, client, stub):
        stub.on("POST", PATH, problem(404, "not_found", "there is no job"))
        with pytest.raises(ApiError):
            client.jobs.predict("job_1", INPUTS)
        assert len(stub.asked) == 1

    @pytest.mark.parametrize(
        ("asked", "least"), [(None, 300), (5, 5), (120, 120), (-1000, 0), (0, 0)]
    )
    def test_is_waited_for_longer_than_it_may_take(self, client, stub, monkeypatch, asked, least):
        waited = []
        ask = client._connection.ask

        def watched(*arguments, timeout, **options):
            waited.append(timeout)
            return ask(*arguments, timeout=timeout, **options)

        monkeypatch.setattr(client._connection, "ask", watched)
        stub.on("POST", PATH, document(ANSWER))
        client.jobs.predict("job_1", INPUTS, timeout_seconds=asked)
        assert waited[0] > least
