"""service.http.middleware: allowed hosts and origins, size limits, and logs."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import select
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
    from starlette.types import Message, Receive, Scope, Send

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

    def test_a_client_that_stops_sending_is_answered(self, app):
        with served(app) as url, socket.create_connection(address(url)) as line:
            line.sendall(b"POST /blind HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 999\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 200")


class TestSlowBodies:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr("service.http.middleware._BODY_SECONDS", 0.5)

    def send(self, app, pieces):
        """Send parts of a body of 99,999 bytes until there is an answer; return it."""
        with served(app) as url, socket.create_connection(address(url)) as line:
            line.sendall(b"POST /echo HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999\r\n\r\n")
            for piece in pieces:
                line.sendall(piece)
                if select.select([line], [], [], 0.1)[0]:
                    break
            line.settimeout(patience(10))
            answer = http.client.HTTPResponse(line)
            answer.begin()
            return answer.status, answer.read()

    @pytest.mark.parametrize("pieces", [[], [b"x"] * 9999, [b"x" * 90_000]])
    def test_one_that_keeps_the_server_waiting_is_refused(self, app, pieces):
        status, content = self.send(app, pieces)
        assert (status, json.loads(content)["code"]) == (408, "request_timeout")
        assert b"1024 bytes per second" in content

    def test_a_steady_one_may_take_longer_than_any_pause(self, app):
        began = time.monotonic()
        assert self.send(app, [bytes(9999)] * 10 + [bytes(9)]) == (200, b"99999")
        assert time.monotonic() - began > 0.9

    def test_time_that_the_server_takes_does_not_count(self, app):
        async def late(request: Request) -> PlainTextResponse:
            await asyncio.sleep(1)
            return await echo(request)

        app.router.routes.append(Route("/late", late, methods=["POST"]))
        with served(app) as url, closing(connect(url)) as connection:
            connection.request("POST", "/late", body=bytes(9))
            assert connection.getresponse().read() == b"9"


class TestHeaders:
    @pytest.mark.parametrize(
        ("path", "host"),
        [
            ("/echo", "testserver"),
            ("/nowhere", "testserver"),
            ("/broken", "testserver"),
            ("/", "b"),
        ],
    )
    def test_no_answer_is_cached_or_guessed_at(self, client, path, host):
        answer = client.get(path, headers={"host": host})
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]

    def test_an_answer_may_decide_for_itself(self, app, client):
        async def kept(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("", headers={"Cache-Control": "no-cache"})

        app.router.routes.append(Route("/kept", kept))
        assert client.get("/kept").headers.get_list("cache-control") == ["no-cache"]


class TestLargeAnswers:
    @pytest.mark.parametrize("size", [0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, 100_000])
    def test_are_sent_in_pieces(self, size):
        body = bytes(range(251)) * (size // 251 + 1)
        sent = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse(body[:size])(scope, receive, send)

        door = Door(answer, allowed_hosts=["a"], observe=lambda *_: None)
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"a")]}
        asyncio.run(door(scope, None, send))
        start, *pieces = sent
        assert start["type"] == "http.response.start"
        assert b"".join(piece["body"] for piece in pieces) == body[:size]
        assert max(len(piece["body"]) for piece in pieces) <= 16 << 10
        assert [piece.get("more_body", False) for piece in pieces] == [
            *([True] * (len(pieces) - 1)),
            False,
        ]


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
