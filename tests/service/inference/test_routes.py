"""service.inference.routes: requests to the inference process, and callers' answers."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from tests.service.gateways import problem_of
from tests.service.inference.answers import TEXT, items_of
from tests.service.work import FILES, running_job

SHA256 = hashlib.sha256(FILES["float32"]).hexdigest()
MISSING = "job_" + "x" * 24
SHORT = {"label": "short", "score": 0.75, "scores": {"long": 0.25, "short": 0.75}}


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
                "timeout_seconds": pytest.approx(30.0, abs=5.0),  # what is left of it
            }
        ]

    def test_options_are_passed_on(self, ask, predictor):
        ask(TEXT, truncate=False, timeout_seconds=7)
        assert predictor.asked[0]["truncate"] is False
        assert 0.0 < predictor.asked[0]["timeout_seconds"] <= 7.0

    @pytest.mark.parametrize(
        "given",
        [
            {"text": "größe 😀\x01 \u2028\n"},
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

    def test_the_request_has_one_id(self, client, alice, job_id, predictor):
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
    ({"text": "a\x00b"}, ".text"),
    ({"text": "a", "text_pair": "\x00"}, ".text_pair"),
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

    @pytest.mark.parametrize("half", ["\ud800", "a\udfffb"])
    def test_with_a_lone_surrogate_leave_the_others_answered(
        self, client, alice, job_id, *, half: str
    ):
        wrong = [
            ({"text": half}, ".text"),
            ({"text": "a", "text_pair": half}, ".text_pair"),
            ({"image": half}, ".image"),
            ({half: "a"}, ""),
            ({"text": "a", half: 1}, ""),
            (half, ""),
        ]
        for path, place, wrap in (
            (f"/jobs/{job_id}/predict", "", lambda given: given),
            ("/predict", ".input", lambda given: {"job": job_id, "input": given}),
        ):
            inputs = [wrap(given) for given, _ in [(TEXT, ""), *wrong, (TEXT, "")]]
            content = json.dumps({"inputs": inputs}).encode()
            headers = {**alice.headers, "content-type": "application/json"}
            items = items_of(client.post(path, content=content, headers=headers), count=len(inputs))
            assert [fault(item) for item in items[1:-1]] == [
                ("invalid_input", f"inputs.{index}{place}{field}")
                for index, (_, field) in enumerate(wrong, start=1)
            ]
            assert "label" in items[0]
            assert "label" in items[-1]

    def test_with_a_lone_surrogate_in_the_job_leave_the_others_answered(
        self, client, alice, job_id
    ):
        inputs = [{"job": "job_\ud800", "input": TEXT}, {"job": job_id, "input": TEXT}]
        inputs.append({"job": job_id, "input": TEXT, "\ud800": 1})
        content = json.dumps({"inputs": inputs}).encode()
        headers = {**alice.headers, "content-type": "application/json"}
        items = items_of(client.post("/predict", content=content, headers=headers), count=3)
        assert fault(items[0]) == ("not_found", "inputs.0.job")
        assert items[0]["job"] == r"job_\ud800"
        assert items[1]["label"] == "short"
        assert fault(items[2]) == ("invalid_input", "inputs.2")

    def test_may_lack_a_valid_job(self, mix, predictor):
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

    def test_a_text_has_a_character_limit(self, ask, mix, job_id, predictor):
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
        assert [message.rpartition("(`text_pair`)")[2] for message in messages] == [
            "; this one has `txt`",
            f"; this one has `{'x' * 64}` and `y`",
            "; this one has 7 fields",
            "",
            "",
        ]

    def test_report_an_empty_text(self, ask):
        (item,) = ask({"text": ""})
        assert "0 characters, at least 1 required" in item["error"]["message"]

    def test_of_the_inference_process_name_their_index(self, ask, mix, job_id):
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

    def test_another_tenants_are_not_found(self, mix, theirs, alice, job_id, predictor):
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

    def test_a_too_long_name_is_shortened(self, mix):
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

    def test_the_maximum_is_accepted(self, mix, job_id, other_id):
        names = [job_id, other_id, MISSING, "no"] * 64
        items = mix(*({"job": name, "input": TEXT} for name in names))
        assert [item["job"] for item in items] == names
        assert ["label" in item for item in items] == [True, True, False, False] * 64
