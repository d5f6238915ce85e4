"""store.errors: one form for every refusal."""

from __future__ import annotations

import json

import pytest

from store.errors import ProblemError


class TestProblemError:
    def test_is_a_problem_details_document(self):
        error = ProblemError(
            "not_ready", status=409, detail="it trains", param="job", extra={"status_of": "job"}
        )
        assert json.loads(error.to_json(request_id="r1")) == {
            "type": "urn:hifi:problem:not_ready",
            "title": "Not ready",
            "status": 409,
            "detail": "it trains",
            "code": "not_ready",
            "param": "job",
            "request_id": "r1",
            "status_of": "job",
        }

    @pytest.mark.parametrize(
        ("code", "title"),
        [("invalid_json", "Invalid JSON"), ("invalid_http", "Invalid HTTP"), ("busy", "Busy")],
    )
    def test_its_title_is_the_code_in_words(self, code, title):
        error = ProblemError(code, status=400, detail="it is")
        assert json.loads(error.to_json())["title"] == title

    def test_is_ascii_for_any_input(self):
        error = ProblemError("invalid_request", status=422, detail="not '\ud800'")
        assert json.loads(error.to_json().encode("ascii"))["detail"] == "not '\ud800'"

    @pytest.mark.parametrize(("status", "is_retried"), [(429, True), (503, True), (409, False)])
    def test_a_temporary_problem_has_retry_after(self, status, is_retried):
        error = ProblemError("busy", status=status, detail="busy")
        assert ("Retry-After" in error.headers) is is_retried

    def test_its_own_retry_after_takes_precedence(self):
        error = ProblemError("busy", status=429, detail="busy", headers={"Retry-After": "1"})
        assert error.headers == {"Retry-After": "1"}
