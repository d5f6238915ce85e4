"""service.http.bodies: JSON as it is meant, and everything else refused with its reason."""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import build_app
from service.http.bodies import JsonBody, _check_count
from store.errors import ProblemError
from tests.service.gateways import add_dataset_row, job_spec, problem_of, served
from tests.waiting import patience, within


@pytest.fixture
def post(client, alice, database):
    dataset = add_dataset_row(database, alice)

    def post(**changes):
        return client.post("/jobs", json=job_spec(dataset) | changes, headers=alice.headers)

    return post


class TestLargeBodies:
    def test_a_tenant_sends_some_at_a_time(self, settings, alice, bob):
        head = (
            "POST /jobs HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\n"
            "content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        )
        with served(build_app(settings)) as url, ExitStack() as stack:
            place = urlsplit(url)

            def begin(member):
                line = socket.create_connection((place.hostname, place.port), patience(20))
                stack.enter_context(line)
                line.sendall(head.format(member.secret).encode() + b" " * 70_000)
                return line

            held = [begin(alice) for _ in range(16)]
            time.sleep(0.5)
            answer = http.client.HTTPResponse(begin(alice))
            answer.begin()
            assert answer.status == 429
            assert b"16 open large request bodies" in answer.read()
            for line in (held[0], begin(bob)):
                line.sendall(b"x" * 30_000)
                assert line.recv(100).startswith(b"HTTP/1.1 400")


class TestBadBodies:
    @pytest.mark.parametrize(
        ("content", "status", "code"),
        [
            (b"", 422, "invalid_request"),
            (b"{", 400, "invalid_json"),
            (b"[]", 422, "invalid_request"),
            (b"null", 422, "invalid_request"),
            (b'"x"', 422, "invalid_request"),
            (b"\xff\xfe", 400, "invalid_json"),
            (b'{"model": "\xff"}', 400, "invalid_json"),
            (b'{"model": "\\ud800"}', 400, "invalid_json"),
            (b"[" * 10_000, 400, "invalid_json"),
            (b'{"metadata":' * 1_000, 400, "invalid_json"),
            (b"[" * 100_000, 422, "invalid_request"),
            (b'{"metadata":' * 50_000, 422, "invalid_request"),
            (b"9" * 10_000, 400, "invalid_json"),
            (b"\x00", 400, "invalid_json"),
        ],
    )
    def test_are_refused(self, client, alice, content, status, code):
        headers = {**alice.headers, "content-type": "application/json"}
        problem = problem_of(client.post("/jobs", content=content, headers=headers))
        assert (problem["status"], problem["code"]) == (status, code)

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"k": 0}, "k"),
            ({"k": "3"}, "k"),
            ({"k": 3.0}, "k"),
            ({"k": True}, "k"),
            ({"k": 10**30}, "k"),
            ({"xi": 1.5}, "xi"),
            ({"ξ": 1.5}, "ξ"),
            ({"xi": 0.9, "ξ": 0.9}, "ξ"),
            ({"training": {"epochs": 0}}, "training.epochs"),
            ({"training": {"learning_rate": "fast"}}, "training.learning_rate"),
            ({"training": {"learning_rate": 2}}, "training.learning_rate"),
            ({"training": {"speed": 1}}, "training.speed"),
            ({"preset": "papers"}, "preset"),
            ({"training": []}, "training"),
            ({"task": {"text": ["a", 5]}}, "task.text.1"),
            ({"task": {"text": ["a", "b", "c"]}}, "task.text"),
            ({"dataset": {"hub": 5}}, "dataset.hub"),
            ({"dataset": {}}, "dataset.hub"),
            ({"dataset": 5}, "dataset"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {"a\x00": "x"}}, "metadata.a\x00"),
            ({"name": "a\x00"}, "name"),
            ({"model": "\x00"}, "model"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_the_field_is_named(self, post, changes, param):
        problem = problem_of(post(**changes))
        assert (problem["status"], problem["code"]) == (422, "invalid_request")
        assert problem["param"] == param
        assert problem["detail"].startswith(f"{param}: ")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
    def test_a_non_finite_number_is_refused(self, client, alice, number):
        content = f'{{"model": "m", "dataset": "ds_1", "xi": {number}}}'
        headers = {**alice.headers, "content-type": "application/json"}
        problem = problem_of(client.post("/jobs", content=content, headers=headers))
        assert (problem["status"], problem["param"]) == (422, "xi")

    # The event loop is not to spend seconds on saying what is wrong with each.
    @pytest.mark.parametrize(
        ("changes", "detail"),
        [
            ({"task": {"text": [0] * 100_000}}, "the body has more than 1000 values"),
            ({str(number): 0 for number in range(10_000)}, "the body has more than 1000 values"),
            ({"metadata": {"x": [{"y": 0}] * 10_000}}, "the body has more than 1000 values"),
            ({str(number): 0 for number in range(900)}, "the body's fields have 900 errors"),
        ],
    )
    def test_faults_without_number_are_not_listed(self, post, changes, detail):
        problem = problem_of(post(**changes))
        assert (problem["status"], problem["code"]) == (422, "invalid_request")
        assert problem["detail"].startswith(detail)
        assert "errors" not in problem

    @pytest.mark.parametrize(
        ("text", "detail"),
        [
            (["a", "b", "c"], "task.text: 3 entries, at most 2 allowed"),
            ([], "task.text: 0 entries, at least 1 required"),
            ("", "task.text: 0 characters, at least 1 required"),
            (["a", 1], "task.text.1: input should be a valid string, not 1"),
        ],
    )
    def test_a_field_of_several_types_has_the_reason_of_the_given_one(self, post, text, detail):
        problem = problem_of(post(task={"text": text}))
        assert (problem["detail"], problem.get("errors", [])) == (detail, [])

    def test_a_large_body_of_few_values_is_read(self, post):
        metadata = {f"{number:064}": "\U0001f600" * 512 for number in range(16)}
        answer = post(metadata=metadata)
        assert answer.status_code == 202, answer.text
        assert answer.json()["metadata"] == metadata

    def test_all_fields_at_fault_are_listed(self, post):
        problem = problem_of(post(k=0, d=5, name=7))
        assert {entry["param"] for entry in problem["errors"]} == {"k", "d", "name"}

    @pytest.mark.parametrize(
        "content_type",
        ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json", "ü"],
    )
    def test_another_content_type_is_refused(self, client, alice, content_type):
        headers = {**alice.headers, "content-type": content_type.encode("latin-1")}
        answer = client.post("/jobs", content=b"{}", headers=headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (415, "unsupported_media_type")

    def test_json_with_a_character_set_is_json(self, client, alice):
        headers = {**alice.headers, "content-type": "Application/JSON; charset=utf-8"}
        assert client.post("/jobs", content=b"{}", headers=headers).status_code == 422

    def test_one_that_is_too_large_is_refused(self, client, alice):
        headers = {**alice.headers, "content-type": "application/json"}
        content = b'{"name": "' + b"x" * (1 << 20) + b'"}'
        assert problem_of(client.post("/jobs", content=content, headers=headers))["status"] == 413


def marks_of(value: object) -> int:
    """Count the values that follow a comma or an opening bracket."""
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(len(value), 1) + sum(map(marks_of, inner))


texts = st.text(alphabet=',[]{}:"\\\n é', max_size=8)
json_values = st.recursive(
    texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


class TestCheckCount:
    @given(json_values, st.booleans())
    def test_counts_values_and_ignores_characters_in_strings(self, value: object, is_ascii: bool):
        raw = json.dumps(value, ensure_ascii=is_ascii).encode()
        count = marks_of(value)
        _check_count(raw, most=count)
        if count > 1:
            with pytest.raises(ProblemError) as caught:
                _check_count(raw, most=count - 1)
            assert caught.value.status == 422

    @pytest.mark.parametrize(
        "raw",
        [
            b'"' * (1 << 20),
            b"[" * (1 << 20),
            b'["' + b'\\"' * (1 << 20),
            b'["' + b"\\" * (1 << 20),
            b'["' + b"," * (1 << 20),
            b'"",' * (1 << 20),
        ],
    )
    def test_takes_no_time_for_what_is_no_json(self, raw: bytes):
        with within(1), suppress(ProblemError):
            _check_count(raw, most=1000)


class TestHash:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}'),
            ('{"a": 1.0}', '{"a": 1}'),
            ('{"a": 5e-1}', '{"a": 0.50}'),
            ('{"a": "\\u00e9"}', '{"a": "é"}'),
        ],
    )
    def test_depends_on_content_and_not_on_spelling(self, one, other):
        assert hash_of(one) == hash_of(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ('{"a": 1}', '{"a": 2}'),
            ('{"a": 1}', '{"a": "1"}'),
            ('{"a": [1, 2]}', '{"a": [2, 1]}'),
            ('{"a": 1}', '{"a": true}'),
            ('{"a": null}', "{}"),
        ],
    )
    def test_differs_between_bodies(self, one, other):
        assert hash_of(one) != hash_of(other)


def hash_of(text: str) -> str:
    return JsonBody(None, text.encode()).sha256()
