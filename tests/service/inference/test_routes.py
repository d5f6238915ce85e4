"""service.inference.routes: what is asked of the inference process, and what callers get."""

from __future__ import annotations

import base64
import hashlib
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
from store.storage import ArtifactStorage
from tests.service.gateways import opened, problem_of, served
from tests.service.predictors import Predictor
from tests.service.work import FILES, finished_job, running_job
from tests.waiting import eventually, patience, within

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.testclient import TestClient

    from store.database import Database
    from store.settings import Settings
    from tests.service.gateways import Member

SHA256 = hashlib.sha256(FILES["float32"]).hexdigest()
MISSING = "job_" + "x" * 24
SHORT = {"label": "short", "score": 0.75, "scores": {"long": 0.25, "short": 0.75}}
TEXT = {"text": "a text"}


@pytest.fixture
def predictor() -> Predictor:
    return Predictor()


@pytest.fixture
def settings(settings: Settings, predictor: Predictor) -> Iterator[Settings]:
    """Give settings with an inference process that answers."""
    with served(predictor.app) as url:
        yield settings.model_copy(update={"infer_url": url})


@pytest.fixture
def storage(settings: Settings) -> ArtifactStorage:
    return ArtifactStorage(settings.artifacts_url)


@pytest.fixture
def job_id(database: Database, storage: ArtifactStorage, alice: Member) -> str:
    return finished_job(database, storage, alice.tenant_id)


@pytest.fixture
def other_id(database: Database, storage: ArtifactStorage, alice: Member) -> str:
    return finished_job(database, storage, alice.tenant_id)


@pytest.fixture
def theirs(database: Database, storage: ArtifactStorage, bob: Member) -> str:
    """Give a job of another tenant."""
    return finished_job(database, storage, bob.tenant_id)


@pytest.fixture
def ask(client: TestClient, alice: Member, job_id: str):
    """Give a function that asks for predictions of alice's job; gives the items' answers."""

    def ask(*inputs: Any, **options: Any) -> Any:
        body = {"inputs": list(inputs), **options}
        answer = client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)
        return items_of(answer, count=len(inputs))

    return ask


@pytest.fixture
def mix(client: TestClient, alice: Member):
    """Give a function that asks for predictions of any jobs; gives the items' answers."""

    def mix(*inputs: Any, member: Member = alice, **options: Any) -> Any:
        answer = client.post(
            "/predict", json={"inputs": list(inputs), **options}, headers=member.headers
        )
        return items_of(answer, count=len(inputs))

    return mix


def items_of(answer: Any, *, count: int) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["object"] == "list"
    items: list[dict[str, Any]] = document["data"]
    assert [item["index"] for item in items] == list(range(count))
    return items


def fault(item: dict[str, Any]) -> tuple[str, str | None]:
    assert set(item) == {"index", "job", "error"}
    assert set(item["error"]) == {"code", "message", "param"}
    assert item["error"]["message"]
    return item["error"]["code"], item["error"]["param"]


class TestOfOneJob:
    def test_are_answered_in_the_order_asked(self, ask, job_id, predictor, alice):
        items = ask({"text": "a" * 200}, TEXT, {"text": "number"})
        assert items == [
            {
                "index": 0,
                "job": job_id,
                "label": "long",
                "score": 0.9,
                "scores": {"long": 0.9, "short": 0.1},
            },
            {"index": 1, "job": job_id, **SHORT},
            {"index": 2, "job": job_id, "value": 1.5},
        ]
        order = {
            "tenant": alice.tenant_id,
            "job": job_id,
            "model": "minilm",
            "revision": None,
            "sha256": SHA256,
        }
        assert predictor.asked == [
            {
                "orders": [order],
                "items": [
                    {"order": 0, "input": {"text": "a" * 200}},
                    {"order": 0, "input": TEXT},
                    {"order": 0, "input": {"text": "number"}},
                ],
                "truncate": True,
                "timeout_seconds": 30.0,
            }
        ]

    def test_options_are_passed_on(self, ask, predictor):
        ask(TEXT, truncate=False, timeout_seconds=7)
        assert predictor.asked[0]["truncate"] is False
        assert predictor.asked[0]["timeout_seconds"] == 7.0

    @pytest.mark.parametrize(
        "given",
        [
            {"text": "größe 😀\x00 \u2028\n"},
            {"text": "one", "text_pair": "another"},
            {"image": base64.b64encode(bytes(range(256)) * 12_000).decode()},
        ],
    )
    def test_inputs_arrive_as_they_are(self, ask, predictor, given):
        assert "label" in ask(given)[0]
        assert predictor.asked[0]["items"] == [{"order": 0, "input": given}]

    def test_a_pair_whose_second_text_is_null_is_a_text(self, ask, predictor):
        ask({**TEXT, "text_pair": None})
        assert predictor.asked[0]["items"] == [{"order": 0, "input": TEXT}]

    def test_the_request_is_known_by_one_name(self, client, alice, job_id, predictor):
        answer = client.post(
            f"/jobs/{job_id}/predict",
            json={"inputs": [TEXT]},
            headers={**alice.headers, "X-Request-Id": "r-7"},
        )
        assert answer.headers["x-request-id"] == "r-7"
        assert predictor.headers[0]["x-request-id"] == "r-7"

    def test_a_job_that_is_not_there_is_not_found(self, client, alice, bob, job_id, predictor):
        for member, name in ((alice, MISSING), (bob, job_id), (alice, "JOB!")):
            answer = client.post(
                f"/jobs/{name}/predict", json={"inputs": [TEXT]}, headers=member.headers
            )
            problem = problem_of(answer)
            assert (problem["status"], problem["code"]) == (404, "not_found")
            assert name in problem["detail"]
        assert predictor.asked == []

    def test_a_job_that_has_no_delta_is_not_ready(self, client, alice, database):
        running, lease = running_job(database, alice.tenant_id)

        def ask() -> Any:
            answer = client.post(
                f"/jobs/{running}/predict", json={"inputs": [TEXT]}, headers=alice.headers
            )
            problem = problem_of(answer)
            assert (problem["status"], problem["code"]) == (409, "not_ready")
            return problem["detail"]

        assert "yet" in ask()
        lease.fail(code="out_of_memory", message="too large")
        assert "never" in ask()


WRONG_INPUTS = [
    (None, ""),
    (5, ""),
    ("a text", ""),
    ([], ""),
    ({}, ""),
    ({"txt": "a"}, ""),
    ({"text_pair": "b"}, ""),
    ({"text": "a", "image": "aGk="}, ""),
    ({"text": None}, ".text"),
    ({"text": 5}, ".text"),
    ({"text": ""}, ".text"),
    ({"text": ["a"]}, ".text"),
    ({"text": [0] * 5000}, ".text"),
    ({"text": "a", "text_pair": [[]]}, ".text_pair"),
    ({"text": "a", "text_pair": ""}, ".text_pair"),
    ({"text": "a", "text_pair": 7}, ".text_pair"),
    ({"text": "a", "colour": "red"}, ".colour"),
    ({"text": "a", "x" * 1000: 0}, "." + "x" * 64),
    ({"image": ""}, ".image"),
    ({"image": {"bytes": "aGk="}}, ".image"),
    ({"image": "aGk=", "text_pair": "a"}, ".text_pair"),
]


class TestWrongItems:
    def test_leave_the_others_answered(self, ask, mix, job_id):
        wrong, fields = zip(*WRONG_INPUTS, strict=True)
        inputs = [TEXT, *wrong, TEXT]
        last = len(inputs) - 1
        for items, place in (
            (ask(*inputs), ""),
            (mix(*({"job": job_id, "input": given} for given in inputs)), ".input"),
        ):
            assert items[0] == {"index": 0, "job": job_id, **SHORT}
            assert items[last] == {"index": last, "job": job_id, **SHORT}
            assert [fault(item) for item in items[1:last]] == [
                ("invalid_input", f"inputs.{index}{place}{field}")
                for index, field in enumerate(fields, start=1)
            ]
            assert {item["job"] for item in items} == {job_id}

    def test_may_not_even_name_their_job(self, mix, predictor):
        cases = [
            (None, "", None),
            ([TEXT], "", None),
            (TEXT, ".job", None),
            ({"job": None, "input": TEXT}, ".job", None),
            ({"job": 5, "input": TEXT}, ".job", None),
            ({"job": {}, "input": TEXT}, ".job", None),
            ({"job": "job_1"}, ".input", "job_1"),
            ({"job": "job_1", "inputs": TEXT}, ".input", "job_1"),
            ({"job": "job_1", "input": TEXT, "text": "a"}, ".text", "job_1"),
        ]
        items = mix(*(given for given, _, _ in cases))
        for index, (item, (_, field, job)) in enumerate(zip(items, cases, strict=True)):
            assert fault(item) == ("invalid_input", f"inputs.{index}{field}")
            assert item["job"] == job
        assert predictor.asked == []

    def test_a_text_may_have_so_many_letters(self, ask, mix, job_id, predictor):
        most, more = {"text": "ü" * 100_000}, {"text": "a", "text_pair": "ü" * 100_001}
        items = ask(most, more)
        assert items[0]["label"] == "long"
        assert fault(items[1]) == ("text_too_long", "inputs.1.text_pair")
        assert "100001 characters, at most 100000" in items[1]["error"]["message"]
        assert len(items[1]["error"]["message"]) < 200
        (item,) = mix({"job": job_id, "input": more})
        assert fault(item) == ("text_too_long", "inputs.0.input.text_pair")
        assert len(predictor.asked) == 1

    def test_are_all_answered_without_the_inference_process(self, ask, predictor):
        items = ask({}, {"text": ""}, 5)
        assert [fault(item)[0] for item in items] == ["invalid_input"] * 3
        assert predictor.asked == []

    def test_name_the_fields_of_an_input_that_is_none(self, ask):
        items = ask({"txt": "a"}, {"x" * 1000: 1, "y": 2}, dict.fromkeys("abcdefg", 1), {}, 5)
        messages = [item["error"]["message"] for item in items]
        assert [message.rpartition("`image`")[2] for message in messages] == [
            "; this one has `txt`",
            f"; this one has `{'x' * 64}` and `y`",
            "; this one has 7 fields",
            "",
            "",
        ]

    def test_say_that_an_empty_text_is_one(self, ask):
        (item,) = ask({"text": ""})
        assert "0 characters, at least 1 wanted" in item["error"]["message"]

    def test_of_the_inference_process_have_their_place(self, ask, mix, job_id):
        items = ask(TEXT, {}, {"text": "too long"}, {"text": "too late"})
        assert items[0]["label"] == "short"
        assert [fault(item) for item in items[1:]] == [
            ("invalid_input", "inputs.1"),
            ("text_too_long", "inputs.2.text"),
            ("deadline_exceeded", None),
        ]
        assert items[2]["error"]["message"] == "600 tokens, at most 128"
        (item,) = mix({"job": job_id, "input": {"text": "too long"}})
        assert fault(item) == ("text_too_long", "inputs.0.input.text")


class TestOfManyJobs:
    def test_each_delta_is_ordered_once(self, mix, job_id, other_id, predictor):
        names = (other_id, job_id, other_id, other_id)
        items = mix(
            *({"job": name, "input": {"text": f"a{place}"}} for place, name in enumerate(names))
        )
        assert [item["job"] for item in items] == list(names)
        (asked,) = predictor.asked
        assert [order["job"] for order in asked["orders"]] == [other_id, job_id]
        assert [item["order"] for item in asked["items"]] == [0, 1, 0, 0]
        assert [item["input"]["text"] for item in asked["items"]] == ["a0", "a1", "a2", "a3"]

    def test_only_ones_own_are_there(self, mix, theirs, alice, job_id, predictor):
        names = (theirs, job_id, MISSING, "../etc", "job_\x00", "", "J" * 1000)
        items = mix(*({"job": name, "input": TEXT} for name in names))
        assert "label" in items[1]
        for place in (0, 2, 3, 4, 5, 6):
            assert fault(items[place]) == ("not_found", f"inputs.{place}.job")
            assert items[place]["job"] == names[place][:64]
        there, missing = (items[place]["error"]["message"] for place in (0, 2))
        assert there.replace(theirs, MISSING) == missing
        (asked,) = predictor.asked
        assert [(order["tenant"], order["job"]) for order in asked["orders"]] == [
            (alice.tenant_id, job_id)
        ]

    def test_a_name_that_is_too_long_is_not_repeated_whole(self, mix):
        (item,) = mix({"job": "job_" + "x" * 10_000, "input": TEXT})
        assert fault(item) == ("not_found", "inputs.0.job")
        assert item["job"] == "job_" + "x" * 60
        assert len(item["error"]["message"]) < 200

    def test_one_that_has_no_delta_is_an_items_error(self, mix, database, alice, job_id):
        running, lease = running_job(database, alice.tenant_id)
        inputs = ({"job": running, "input": TEXT}, {"job": job_id, "input": TEXT})
        items = mix(*inputs)
        assert fault(items[0]) == ("not_ready", "inputs.0.job")
        assert "yet" in items[0]["error"]["message"]
        assert "label" in items[1]
        lease.fail(code="out_of_memory", message="too large")
        assert "never" in mix(*inputs)[0]["error"]["message"]

    def test_a_deleted_one_is_gone_at_once(self, client, mix, alice, job_id):
        assert "label" in mix({"job": job_id, "input": TEXT})[0]
        assert client.delete(f"/jobs/{job_id}", headers=alice.headers).status_code == 204
        assert fault(mix({"job": job_id, "input": TEXT})[0]) == ("not_found", "inputs.0.job")

    def test_as_many_as_may_be(self, mix, job_id, other_id):
        names = [job_id, other_id, MISSING, "no"] * 64
        items = mix(*({"job": name, "input": TEXT} for name in names))
        assert [item["job"] for item in items] == names
        assert ["label" in item for item in items] == [True, True, False, False] * 64


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
        [(0, "0 entries, at least 1 wanted"), (257, "257 entries, at most 256 allowed")],
    )
    def test_of_no_or_too_many_inputs_say_how_many(self, client, alice, path, count, told):
        response = client.post(path, json={"inputs": [TEXT] * count}, headers=alice.headers)
        assert problem_of(response)["detail"] == f"inputs: {told}"

    @pytest.mark.parametrize(
        ("content", "status", "code"),
        [
            (b"", 422, "invalid_request"),
            (b"{", 400, "invalid_json"),
            (b'{"inputs": [{"text": "\\ud800"}]}', 400, "invalid_json"),
            (b'{"inputs": [{"text": "a"}]} {}', 400, "invalid_json"),
            (b'{"inputs":[' + b"[]," * 20_000 + b"[]]}", 422, "invalid_request"),
            (b'{"inputs":["' + b"x" * (16 << 20) + b'"]}', 413, "body_too_large"),
        ],
    )
    def test_that_cannot_be_read_are_refused(self, post, content, status, code):
        problem = problem_of(post(content))
        assert (problem["status"], problem["code"]) == (status, code)

    def test_that_are_not_sent_as_json_are_refused(self, post):
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
        assert [asked["timeout_seconds"] for asked in predictor.asked] == [2.5, 2.5]


class TestTroubles:
    @pytest.fixture
    def post(self, client, alice, job_id):
        def post(**options: Any) -> Any:
            body = {"inputs": [TEXT], **options}
            return client.post(f"/jobs/{job_id}/predict", json=body, headers=alice.headers)

        return post

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(("wait", "told"), [("17", "17"), ("soon", "5"), (None, "5")])
    def test_its_load_is_passed_on_with_when_to_come_again(
        self, post, predictor, status, wait, told
    ):
        said = {"code": "too_many_requests", "detail": "9000 inputs wait"}
        headers = {} if wait is None else {"Retry-After": wait}
        predictor.answer = lambda: JSONResponse(said, status_code=status, headers=headers)
        answer = post()
        assert answer.status_code == status
        assert answer.headers.get_list("retry-after") == [told]
        assert answer.json()["code"] == "too_many_requests"
        assert answer.json()["detail"] == "9000 inputs wait"

    def test_of_its_own_are_its_absence(self, post, predictor):
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

    def test_that_it_is_not_there_is_told(self, settings, tmp_path: Path, alice, job_id):
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

    def test_we_wait_a_little_longer_than_it_may_take_and_no_more(
        self, monkeypatch, post, predictor
    ):
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

    def test_the_inference_process_learns_that_a_caller_has_gone(
        self, gateway, predictor, alice, job_id, path
    ):
        predictor.is_silent = True
        inputs = [TEXT] if "jobs" in path else [{"job": job_id, "input": TEXT}]
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{gateway}{path}", json={"inputs": inputs}, headers=alice.headers, timeout=0.7
            )
        assert predictor.gone.wait(patience(3))

    @pytest.mark.parametrize(("inputs", "most"), [(1, 16), (12, 2)], ids=["small", "large"])
    def test_one_more_than_a_tenant_may_have_is_refused(
        self, gateway, predictor, alice, bob, job_id, *, inputs, most
    ):
        predictor.is_silent = True
        text = TEXT if inputs == 1 else {"text": "a" * 100_000}  # together more than a mebibyte
        body = {"inputs": [{"job": job_id, "input": text}] * inputs}
        # They end when their callers lose patience: by then the share was seen to be used up.
        waiting = [
            threading.Thread(target=self._lose_patience, args=(gateway, alice, body))
            for _ in range(most)
        ]
        for thread in waiting:
            thread.start()
        eventually(lambda: len(predictor.asked) == most)
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

    def _lose_patience(self, gateway: str, member: Member, body: Any) -> None:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{gateway}/predict", json=body, headers=member.headers, timeout=patience(2)
            )

    def test_answers_go_to_those_who_asked(self, gateway, alice, job_id):
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
