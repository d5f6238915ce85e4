"""service.http.parameters: query parameters, and unknown paths."""

from __future__ import annotations

import pytest

from tests.service.gateways import problem_of


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=abc", "limit"),
            ("limit=", "limit"),
            ("limit=1.0", "limit"),
            ("limit=%2B5", "limit"),
            ("limit=1_0", "limit"),
            ("limit=%D9%A3", "limit"),
            ("limit=" + "9" * 5000, "limit"),
            ("limit=5&limit=6", "limit"),
            ("status=nonsense", "status"),
            ("status=", "status"),
            ("status=queued&status=queued", "status"),
            ("stauts=queued", "stauts"),
            ("%00=1", "\x00"),
            ("after=a&after=b", "after"),
        ],
    )
    def test_wrong_ones_are_refused(self, client, alice, query, param):
        problem = problem_of(client.get(f"/jobs?{query}", headers=alice.headers))
        assert (problem["status"], problem["code"], problem["param"]) == (
            *(422, "invalid_request"),
            param,
        )

    @pytest.mark.parametrize(
        "after", ["", "x", "job_missing", "%00", "%ff", "%F0%9F%98%80", "a" * 9999]
    )
    def test_a_cursor_that_is_no_row_is_not_found(self, client, alice, after):
        problem = problem_of(client.get(f"/jobs?after={after}", headers=alice.headers))
        assert (problem["status"], problem["code"], problem["param"]) == (404, "not_found", "after")


class TestUnknownRoutes:
    @pytest.mark.parametrize(
        "path", ["/nothing", "/jobs/", "/jobs/job_1/", "/jobs//", "/jobs/job_1/x"]
    )
    def test_are_not_found(self, client, alice, path):
        problem = problem_of(client.get(path, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "/jobs"),
            ("DELETE", "/jobs"),
            ("TRACE", "/jobs"),
            ("GET", "/jobs/job_1/cancel"),
            ("PROPFIND", "/jobs"),
        ],
    )
    def test_other_methods_are_not_allowed(self, client, alice, method, path):
        answer = client.request(method, path, headers=alice.headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == ("GET, POST" if path == "/jobs" else "POST")
