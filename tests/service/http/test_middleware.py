"""service.http.middleware: allowed hosts and origins, size limits, and logs."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from service.http.middleware import BodyLimit, Door
from tests.service.gateways import problem_of, served
from tests.waiting import patience, within

if TYPE_CHECKING:
    from starlette.requests import Request

UPLOAD_LIMIT = 3 << 20


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def blind(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("nobody reads what you send")


async def broken(_request: Request) -> PlainTextResponse:
    raise RuntimeError("secret")


async def half(_request: Request) -> StreamingResponse:
    async def chunks() -> Any:
        yield b"half"
        raise RuntimeError("secret")

    return StreamingResponse(chunks())


@pytest.fixture
def observed() -> list[tuple[str, str, int, float]]:
    return []


@pytest.fixture
def app(observed: list[Any]) -> Starlette:
    return Starlette(
        routes=[
            Route("/echo", echo, methods=["GET", "POST"]),
            Route("/upload", echo, methods=["POST"]),
            Route("/blind", blind, methods=["POST"]),
            Route("/broken", broken),
            Route("/half", half),
        ],
        middleware=[
            Middleware(
                Door,
                allowed_hosts=("testserver", "127.0.0.1", "[::1]", "Hifi.Example"),
                observe=lambda *seen: observed.append(seen),
            ),
            Middleware(BodyLimit, exceptions=[(re.compile("/up[a-z]+"), UPLOAD_LIMIT)]),
        ],
    )


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


class TestRequestId:
    @pytest.mark.parametrize("given", ["abc", "A-1_2.3:4/5+6=", "x" * 128])
    def test_a_sane_one_is_kept(self, client, given):
        answer = client.get("/echo", headers={"x-request-id": given})
        assert answer.headers.get_list("x-request-id") == [given]

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é".encode(), b"a\x80", 'a"b', "a\tb"])
    def test_any_other_is_replaced(self, client, given):
        answers = [client.get("/echo", headers={"x-request-id": given}) for _ in range(2)]
        names = {answer.headers["x-request-id"] for answer in answers}
        assert len(names) == 2
        assert all(len(name) == 32 and name.isalnum() for name in names)

    @pytest.mark.parametrize("path", ["/echo", "/nowhere", "/broken", "/blind"])
    def test_every_answer_has_one(self, client, path):
        assert client.get(path).headers["x-request-id"]


class TestHost:
    @pytest.mark.parametrize(
        "host",
        ["testserver", "TESTSERVER", "testserver:8000", "hifi.example", "[::1]", "[::1]:80"],
    )
    def test_ours_are_served(self, client, host):
        assert client.get("/echo", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("", "evil.example", "testserver.evil.example", "eviltestserver", "testserver:80:80"),
            *(
                "testserver:",
                "testserver:x",
                "::1",
                "[::2]",
                ":80",
                "testserver@evil",
                "[::1",
                "\x00",
            ),
            "testserver, evil.example",
        ],
    )
    def test_others_are_refused(self, client, host):
        problem = problem_of(client.get("/echo", headers={"host": host}))
        assert (problem["status"], problem["code"]) == (400, "host_not_allowed")

    def test_two_are_refused(self, client):
        headers = [("host", "testserver"), ("host", "testserver")]
        assert client.get("/echo", headers=headers).status_code == 400


class TestOrigin:
    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://testserver", "testserver"),
            ("http://testserver:8000", "testserver:8000"),
            ("https://hifi.example", "hifi.example"),
            ("https://hifi.example", "hifi.example:443"),
            ("http://[::1]:8000", "[::1]:8000"),
        ],
    )
    def test_our_own_page_may_call(self, client, origin, host):
        answer = client.get("/echo", headers={"origin": origin, "host": host})
        assert answer.status_code == 200

    @pytest.mark.parametrize(
        "origin",
        [
            *("null", "", "http://evil.example", "http://testserver:3000", "testserver"),
            *("http://testserver.evil.example", "file://testserver", "http://[", "http://"),
            *("http://evil@testserver", "http://127.0.0.1"),
        ],
    )
    def test_foreign_ones_may_not(self, client, origin):
        problem = problem_of(client.get("/echo", headers={"origin": origin}))
        assert (problem["status"], problem["code"]) == (403, "origin_not_allowed")


class TestBodyLimit:
    @pytest.mark.parametrize(
        ("path", "limit"), [("/echo", 1 << 20), ("/upload", UPLOAD_LIMIT), ("/blind", 1 << 20)]
    )
    def test_holds_on_the_declared_length(self, client, path, limit):
        assert client.post(path, content=bytes(limit)).status_code == 200
        problem = problem_of(client.post(path, content=bytes(limit + 1)))
        assert (problem["status"], problem["code"]) == (413, "body_too_large")

    @pytest.mark.parametrize(("path", "limit"), [("/echo", 1 << 20), ("/upload", UPLOAD_LIMIT)])
    def test_holds_on_what_arrives(self, app, path, limit):
        # Chunks over a real socket: no length is declared.
        with served(app) as url, closing(connect(url)) as connection:
            for size, status in ((limit, 200), (limit + 1, 413)):
                chunks = [bytes(1 << 16)] * (size >> 16) + [bytes(size % (1 << 16))]
                connection.request("POST", path, body=iter(filter(None, chunks)))
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == status, content
                connection.close()

    @pytest.mark.parametrize("length", ["9" * 30, "9" * 5000])
    def test_no_number_is_too_long_to_compare(self, client, length):
        answer = client.post("/echo", content=b"", headers={"content-length": length})
        assert answer.status_code == 413

    def test_a_client_that_is_still_sending_hears_the_answer(self, app):
        # Without being heard out it would see a broken connection.
        with served(app) as url:
            for _ in range(3):
                with closing(connect(url)) as connection:
                    connection.request("POST", "/nowhere", body=bytes(8 << 20))
                    assert connection.getresponse().status == 413

    def test_a_client_that_asks_first_sends_nothing(self, app):
        with served(app) as url, socket.create_connection(address(url)) as line:
            line.sendall(
                b"POST /echo HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\n"
                b"content-length: 99999999\r\n\r\n"
            )
            with within(1):
                assert line.recv(1000).startswith(b"HTTP/1.1 413")

    def test_nor_is_one_cut_off_whose_body_comes_late(self, app):
        with served(app) as url, socket.create_connection(address(url)) as line:
            line.sendall(b"POST /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 4\r\n\r\n")
            time.sleep(0.1)
            line.sendall(b"late")
            time.sleep(0.1)
            assert line.recv(1000).startswith(b"HTTP/1.1 404")

    def test_a_client_that_stops_sending_is_answered(self, app, monkeypatch):
        monkeypatch.setattr("service.http.middleware._LINGER_SECONDS", 0.2)
        with served(app) as url, socket.create_connection(address(url)) as line:
            line.sendall(b"POST /blind HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 999\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 200")


class TestFailures:
    def test_an_unexpected_one_is_reported_without_details(self, client):
        answer = client.get("/broken")
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "internal_error"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text

    def test_half_an_answer_is_cut_off(self, app):
        with served(app) as url, closing(connect(url)) as connection:
            connection.request("GET", "/half")
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                connection.getresponse().read()


class TestWritingDown:
    def test_metrics_get_the_route_and_never_the_path(self, client, observed):
        client.get("/echo?secret")
        client.get("/nowhere/job_1")
        ((method, _, status, seconds), (_, route, missing, _)) = observed
        assert (method, status, route, missing) == ("GET", 200, "unmatched", 404)
        assert 0 < seconds < 5

    def test_logs_each_request_with_its_id(self, client):
        with structlog.testing.capture_logs(
            processors=[structlog.contextvars.merge_contextvars]
        ) as entries:
            client.get(
                "/echo?key=secret", headers={"x-request-id": "r1", "authorization": "Bearer s"}
            )
        (entry,) = entries
        assert entry["event"] == "request"
        assert (entry["request_id"], entry["method"], entry["path"]) == ("r1", "GET", "/echo")
        assert entry["status"] == 200
        assert "secret" not in json.dumps(entry)
        assert "Bearer" not in json.dumps(entry)

    def test_one_requests_log_fields_do_not_leak_into_the_next(self, client):
        with structlog.testing.capture_logs(
            processors=[structlog.contextvars.merge_contextvars]
        ) as entries:
            client.get("/echo", headers={"x-request-id": "r1"})
            client.get("/echo")
        assert entries[1]["request_id"] != "r1"


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def connect(url: str) -> http.client.HTTPConnection:
    host, port = address(url)
    return http.client.HTTPConnection(host, port, timeout=patience(10))
