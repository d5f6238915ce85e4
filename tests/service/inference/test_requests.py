"""service.inference.routes: requests that are refused, and an inference process in trouble."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from starlette.responses import JSONResponse, Response

from service.app import build_app
from service.inference import client as inference_client
from tests.service.gateways import asked_and_left, opened, problem_of, served
from tests.service.inference.answers import TEXT, items_of
from tests.waiting import eventually, patience, within

if TYPE_CHECKING:
    from pathlib import Path

    from store.settings import Settings
    from tests.service.gateways import Member


@pytest.fixture(params=["one job", "many jobs"])
def path(request: pytest.FixtureRequest, job_id: str) -> str:
    return f"/jobs/{job_id}/predict" if request.param == "one job" else "/predict"


class TestRequests:
    @pytest.fixture
    def post(self, client, alice, path):
        def post(content: bytes, *, content_type: str = "application/json") -> Any:
            headers = {**alice.headers, "content-type": content_type}
            return client.post(path, content=content, headers=headers)

        return post

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "inputs"),
            ({"inputs": None}, "inputs"),
            ({"inputs": TEXT}, "inputs"),
            ({"inputs": "abc"}, "inputs"),
            ({"inputs": []}, "inputs"),
            ({"inputs": [TEXT] * 257}, "inputs"),
            ({"inputs": [TEXT], "truncate": "no"}, "truncate"),
            ({"inputs": [TEXT], "truncate": 0}, "truncate"),
            ({"inputs": [TEXT], "timeout_seconds": 0}, "timeout_seconds"),
            ({"inputs": [TEXT], "timeout_seconds": -1}, "timeout_seconds"),
            ({"inputs": [TEXT], "timeout_seconds": 301}, "timeout_seconds"),
            ({"inputs": [TEXT], "timeout_seconds": "5"}, "timeout_seconds"),
            ({"inputs": [TEXT], "timeout_seconds": True}, "timeout_seconds"),
            ({"inputs": [TEXT], "model": "m"}, "model"),
            ([TEXT], None),
            (None, None),
        ],
    )
    def test_that_are_none_are_refused(self, client, alice, path, body, param):
        problem = problem_of(client.post(path, json=body, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (422, "invalid_request")
        assert problem["param"] == param

    @pytest.mark.parametrize(
        ("count", "told"),
        [(0, "0 entries, at least 1 required"), (257, "257 entries, at most 256 allowed")],
    )
    def test_of_no_or_too_many_inputs_say_how_many(self, client, alice, path, count, told):
        response = client.post(path, json={"inputs": [TEXT] * count}, headers=alice.headers)
        assert problem_of(response)["detail"] == f"inputs: {told}"

    @pytest.mark.parametrize(
        ("content", "status", "code"),
        [
            (b"", 422, "invalid_request"),
            (b"{", 400, "invalid_json"),
            (b'{"inputs": [{"text": "\xff"}]}', 400, "invalid_json"),
            (b'{"inputs": [{"text": "\xed\xa0\x80"}]}', 400, "invalid_json"),  # a surrogate
            (b'{"inputs": [{"text": "\\ud800\xff"}]}', 400, "invalid_json"),
            (b'{"inputs": [{"text": "\\ud80"}]}', 400, "invalid_json"),
            (b'{"inputs": [{"text": "\\ud800"}], "\\udfff": 1}', 422, "invalid_request"),
            (b'{"inputs": [{"text": "\\ud800"}], "truncate": 0}', 422, "invalid_request"),
            (b'{"inputs":' + b"[" * 200_000 + b'"\\ud800"', 422, "invalid_request"),
            (
                b'{"inputs":' + b"[" * 9_000 + b'"\\ud800"' + b"]" * 9_000 + b"}",
                400,
                "invalid_json",
            ),
            (b'{"inputs": [{"text": "a"}]} {}', 400, "invalid_json"),
            (b'{"inputs":[' + b"[]," * 20_000 + b"[]]}", 422, "invalid_request"),
            (b'{"inputs":["' + b"x" * (16 << 20) + b'"]}', 413, "body_too_large"),
        ],
    )
    def test_that_cannot_be_read_are_refused(self, post, content, status, code):
        problem = problem_of(post(content))
        assert (problem["status"], problem["code"]) == (status, code)

    def test_of_another_content_type_are_refused(self, post):
        problem = problem_of(post(b'{"inputs": [{"text": "a"}]}', content_type="text/plain"))
        assert (problem["status"], problem["code"]) == (415, "unsupported_media_type")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
    def test_a_time_is_a_number(self, post, number):
        problem = problem_of(
            post(f'{{"inputs": [{{"text": "a"}}], "timeout_seconds": {number}}}'.encode())
        )
        assert (problem["status"], problem["param"]) == (422, "timeout_seconds")

    def test_large_ones_are_for_predictions_alone(self, client, alice, job_id, predictor):
        text = 'a, [b] {c} "d" \\ ' * 5_000  # marks that are in a text and count for nothing
        body = {"inputs": [{"text": text}] * 80}
        answer = client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)
        assert items_of(answer, count=80)[79]["label"] == "long"
        assert predictor.asked[0]["items"][79]["input"]["text"] == text
        assert client.post("/jobs", json=body, headers=alice.headers).status_code == 413
        answer = client.post(f"/jobs/{job_id}/cancel", json=body, headers=alice.headers)
        assert answer.status_code == 413

    def test_without_a_time_take_the_servers(self, settings, alice, job_id, predictor):
        with opened(settings.model_copy(update={"infer_timeout_seconds": 2.5})) as client:
            for seconds in ({}, {"timeout_seconds": None}):
                body = {"inputs": [TEXT], **seconds}
                client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)
        left = [asked["timeout_seconds"] for asked in predictor.asked]
        assert len(left) == 2
        assert all(0.0 < seconds <= 2.5 for seconds in left)


class TestTroubles:
    @pytest.fixture
    def post(self, client, alice, job_id):
        def post(**options: Any) -> Any:
            body = {"inputs": [TEXT], **options}
            return client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)

        return post

    def test_what_it_has_no_room_for_is_not_sent_again_at_once(self, post, predictor):
        said = {"code": "too_many_requests", "detail": "9000 inputs wait"}
        predictor.answer = lambda: JSONResponse(said, status_code=429)
        answers = [post(), post()]
        assert [answer.status_code for answer in answers] == [429, 429]
        assert answers[0].json()["detail"] == answers[1].json()["detail"]
        assert len(predictor.asked) == 1

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(("wait", "told"), [("17", "17"), ("soon", "5"), (None, "5")])
    def test_its_overload_is_passed_on_with_retry_after(self, post, predictor, status, wait, told):
        said = {"code": "too_many_requests", "detail": "9000 inputs wait"}
        headers = {} if wait is None else {"Retry-After": wait}
        predictor.answer = lambda: JSONResponse(said, status_code=status, headers=headers)
        answer = post()
        assert answer.status_code == status
        assert answer.headers.get_list("retry-after") == [told]
        assert answer.json()["code"] == "too_many_requests"
        assert answer.json()["detail"] == "9000 inputs wait"

    def test_of_its_own_count_as_unavailable(self, post, predictor):
        for answer in (
            JSONResponse({"code": "not_found", "detail": "a secret"}, status_code=404),
            JSONResponse({"code": "conflict", "detail": "a secret"}, status_code=409),
            JSONResponse({"code": "body_too_large", "detail": "a secret"}, status_code=413),
            JSONResponse({"code": "invalid_request", "detail": "a secret"}, status_code=422),
            JSONResponse({"code": "x", "detail": "a secret"}, status_code=500),
            Response("<html>a secret", status_code=502),
            Response("<html>a secret", status_code=429),
            Response(status_code=302, headers={"location": "/"}),
            Response("a secret"),
            JSONResponse({"data": [{"error": "a secret"}]}),
            Response("x" * 100, headers={"content-encoding": "gzip"}),
        ):
            predictor.answer = lambda answer=answer: answer
            refused = post()
            assert refused.status_code == 503
            assert refused.json()["code"] == "inference_unavailable"
            assert "secret" not in refused.text
            assert int(refused.headers["retry-after"]) > 0

    def test_an_unreachable_process_is_reported(self, settings, tmp_path: Path, alice, job_id):
        away = settings.model_copy(update={"infer_url": f"unix://{tmp_path}/nobody"})
        with opened(away) as client:
            answer = client.post(
                f"/jobs/{job_id}/predict", json={"inputs": [TEXT]}, headers=alice.headers
            )
            assert (answer.status_code, answer.json()["code"]) == (503, "inference_unavailable")
            # Whatever needs no inference process is answered without one.
            answer = client.post(
                f"/jobs/{job_id}/predict", json={"inputs": [{}]}, headers=alice.headers
            )
            assert answer.status_code == 200

    def test_the_gateway_times_out_shortly_after_the_request(self, monkeypatch, post, predictor):
        monkeypatch.setattr(inference_client, "_SPARE_SECONDS", 0.5)
        predictor.is_silent = True
        started = time.monotonic()
        with within(4):
            answer = post(timeout_seconds=0.3)
        assert (answer.status_code, answer.json()["code"]) == (503, "inference_unavailable")
        assert time.monotonic() - started >= 0.8
        assert predictor.gone.wait(patience())


class TestManyAtOnce:
    @pytest.fixture
    def gateway(self, settings: Settings) -> Iterator[str]:
        with served(build_app(settings)) as url:
            yield url

    def test_the_inference_process_notices_a_gone_caller(
        self, gateway, predictor, alice, job_id, path
    ):
        predictor.is_silent = True
        inputs = [TEXT] if "jobs" in path else [{"job": job_id, "input": TEXT}]
        with asked_and_left(
            f"{gateway}{path}", method="POST", headers=alice.headers, body={"inputs": inputs}
        ):
            eventually(lambda: predictor.asked)
        assert predictor.gone.wait(patience())

    def test_one_more_than_a_tenant_may_have_is_refused(
        self, gateway, predictor, alice, bob, job_id
    ):
        predictor.is_silent = True
        body = {"inputs": [{"job": job_id, "input": TEXT}]}
        # They end when their callers lose patience: by then the share was seen to be used up.
        waiting = [
            threading.Thread(target=self._lose_patience, args=(gateway, alice, body))
            for _ in range(16)
        ]
        for thread in waiting:
            thread.start()
        eventually(lambda: len(predictor.asked) == 16)
        refused = httpx2.post(f"{gateway}/predict", json=body, headers=alice.headers)
        problem = problem_of(refused)
        assert (problem["status"], problem["code"]) == (429, "too_many_predictions")
        assert int(refused.headers["retry-after"]) > 0
        predictor.is_silent = False
        # Another tenant has its own.
        assert httpx2.post(f"{gateway}/predict", json=body, headers=bob.headers).status_code == 200
        for thread in waiting:
            thread.join()
        eventually(
            lambda: httpx2.post(f"{gateway}/predict", json=body, headers=alice.headers).is_success
        )

    def test_large_ones_of_a_tenant_wait_for_each_other(
        self, gateway, predictor, alice, bob, job_id
    ):
        predictor.is_silent = True
        text = {"text": "a" * 100_000}
        body = {"inputs": [{"job": job_id, "input": text}] * 12}  # more than a mebibyte
        first = threading.Thread(target=self._lose_patience, args=(gateway, alice, body))
        first.start()
        eventually(lambda: len(predictor.asked) == 1)
        predictor.is_silent = False
        assert httpx2.post(f"{gateway}/predict", json=body, headers=bob.headers).status_code == 200
        small = {"inputs": [{"job": job_id, "input": TEXT}]}
        assert httpx2.post(f"{gateway}/predict", json=small, headers=alice.headers).is_success
        assert not predictor.gone.is_set()
        answer = httpx2.post(
            f"{gateway}/predict", json=body, headers=alice.headers, timeout=patience(30)
        )
        assert answer.is_success
        assert predictor.gone.is_set()
        first.join()

    def _lose_patience(self, gateway: str, member: Member, body: Any) -> None:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{gateway}/predict", json=body, headers=member.headers, timeout=patience(1)
            )

    def test_answers_go_to_their_callers(self, gateway, alice, job_id):
        def ask(number: int) -> None:
            inputs = [{"text": "a" * (200 if number % 2 else 5)}] * (number + 1)
            answer = httpx2.post(
                f"{gateway}/jobs/{job_id}/predict", json={"inputs": inputs}, headers=alice.headers
            )
            labels.append((number, [item["label"] for item in json.loads(answer.content)["data"]]))

        labels: list[Any] = []
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(labels) == [
            (number, ["long" if number % 2 else "short"] * (number + 1)) for number in range(12)
        ]
