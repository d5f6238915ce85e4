"""service.connections.protocol: time limits of a connection, with real sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from service.connections import protocol
from service.connections.limits import Connections
from service.connections.protocol import limited_by
from tests.service.gateways import serving
from tests.waiting import eventually, patience, within

if TYPE_CHECKING:
    from starlette.requests import Request

LARGE = 8 << 20
GET = b"GET /blind HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
LARGE_GET = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = POST.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked")
SHORT = 0.3


async def blind(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("nobody reads what you send")


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def large(_request: Request) -> StreamingResponse:
    return StreamingResponse(bytes(16 << 10) for _ in range(LARGE // (16 << 10)))


APP = Starlette(
    routes=[
        Route("/blind", blind, methods=["GET", "POST"]),
        Route("/echo", echo, methods=["POST"]),
        Route("/large", large),
    ]
)


class Listening:
    """A server with limits, and connections to it."""

    def __init__(self, port: int, open_ones: set[object]) -> None:
        self.port = port
        self.open_ones = open_ones

    def connect(self, sent: bytes = b"", *, source: str = "127.0.0.1") -> socket.socket:
        line = socket.create_connection(
            ("127.0.0.1", self.port), timeout=patience(20), source_address=(source, 0)
        )
        line.sendall(sent)
        return line

    def count(self) -> int:
        return len(self.open_ones)


@contextmanager
def listening(*, most: int = 100, most_per_caller: int = 100) -> Iterator[Listening]:
    limits = Connections(most=most, most_per_caller=most_per_caller)
    options = {"http": limited_by(limits), "callback_notify": limits.check_all}
    with serving(APP, host="127.0.0.1", port=0, timeout_graceful_shutdown=3, **options) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Listening(port, server.server_state.connections)


def read_all(line: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    try:
        while part := line.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


def heard(line: socket.socket, text: bytes = b"nobody reads what you send") -> bool:
    """Read up to a text; return whether it came."""
    received = b""
    while text not in received:
        part = line.recv(1000)
        if not part:
            return False
        received += part
    return True


def refused(received: bytes) -> tuple[int, str]:
    """Assert that an answer is a whole problem that closes its connection; return its code."""
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert {"connection: close", "cache-control: no-store", "x-content-type-options: nosniff"} <= {
        *lines
    }
    document = json.loads(body)
    assert f"x-request-id: {document['request_id']}" in lines
    assert f"content-length: {len(body)}" in lines
    assert int(lines[0].split()[1]) == document["status"]
    return document["status"], document["code"]


class TestHeads:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr(protocol, "_HEAD_SECONDS", SHORT)

    def test_an_incomplete_one_is_ended_however_it_trickles(self):
        with listening() as server, closing(server.connect(GET[:-2])) as line, within(10):
            line.setblocking(False)
            while server.count():
                try:
                    line.send(b"x: y\r\n")
                except OSError:
                    break
                time.sleep(0.05)
            eventually(lambda: not server.count())

    def test_its_client_hears_why(self):
        with listening() as server, closing(server.connect(GET[:-2])) as line:
            assert refused(read_all(line)) == (408, "request_timeout")

    def test_a_connection_without_a_byte_is_closed_without_one(self):
        with listening() as server, closing(server.connect()) as line:
            assert read_all(line) == b""

    def test_a_later_one_has_the_same_time(self):
        with listening() as server, closing(server.connect(GET)) as line:
            assert heard(line)
            time.sleep(2 * SHORT)  # no byte of it has come: that limit is a longer one
            line.sendall(GET)
            assert heard(line)
            line.sendall(GET[:9])
            assert refused(read_all(line)) == (408, "request_timeout")

    def test_a_request_under_way_is_not_ended(self):
        with (
            listening() as server,
            closing(server.connect(LARGE_GET)) as line,
        ):
            time.sleep(2 * SHORT)
            received = 0
            while received < LARGE:
                received += len(line.recv(1 << 20))

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (GET.replace(b"Host: a", b"Host: a\r\nHost: a"), 400),
            (POST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
            (GET.replace(b"Host: a", b"Host: a\r\n folded: b"), 400),
            (GET.replace(b"Host: a", b"Host: a\r\nX: \x00"), 400),
            (GET.replace(b"Host: a", b""), 400),
            (b"GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /a%0ab HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00", 400),
            (GET.replace(b"Host: a", b"Host: a\r\nX: " + bytes([97]) * 70_000), 431),
            (GET.replace(b"Host: a", b"Host: a" + b"\r\nX: a" * 500), 431),
            (GET.replace(b"Host: a", b"Host: a\r\nTransfer-Encoding: gzip"), 501),
        ],
    )
    def test_an_unclear_one_is_refused_and_the_connection_closed(self, sent, status):
        with listening() as server, closing(server.connect(sent)) as line:
            assert refused(read_all(line)) == (status, "invalid_http")

    def test_what_follows_a_refused_one_is_not_read(self):
        bad = GET.replace(b"Host: a", b"Host: a\r\nHost: a")
        with listening() as server, closing(server.connect(bad + GET)) as line:
            assert refused(read_all(line)) == (400, "invalid_http")


class TestBodies:
    def test_one_that_goes_on_after_the_answer_is_read_for_a_while_only(self, monkeypatch):
        monkeypatch.setattr(protocol, "_LINGER_SECONDS", SHORT)
        with listening() as server, closing(server.connect(POST)) as line:
            assert heard(line)
            with within(10):
                while server.count():
                    line.send(b"x")
                    time.sleep(0.05)

    def test_a_client_may_finish_it_and_go_on(self):
        with listening() as server, closing(server.connect(POST)) as line:
            assert heard(line)
            line.sendall(bytes(1_000_000))
            line.sendall(GET)
            assert heard(line)

    def test_a_client_that_finishes_it_and_does_not_go_on_is_closed(self, monkeypatch):
        monkeypatch.setattr(protocol, "_HEAD_SECONDS", SHORT)
        with listening() as server, closing(server.connect(POST)) as line:
            assert heard(line)
            line.sendall(bytes(1_000_000))
            eventually(lambda: not server.count())

    def test_what_nobody_read_is_not_kept(self):
        with listening() as server, closing(server.connect(POST + bytes(200_000))) as line:
            assert heard(line)
            eventually(lambda: all(not one.cycle.body for one in server.open_ones))

    def test_a_broken_one_ends_the_connection(self, caplog):
        with listening() as server, closing(server.connect(CHUNKED)) as line:
            assert heard(line)
            line.sendall(b"no number\r\n")
            assert read_all(line)
        assert not [record for record in caplog.records if record.exc_info]

    def test_one_that_is_read_and_broken_is_refused(self):
        sent = POST.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked")
        with (
            listening() as server,
            closing(server.connect(sent.replace(b"/blind", b"/echo"))) as line,
        ):
            line.sendall(b"no number\r\n")
            assert refused(read_all(line)) == (400, "invalid_http")


class TestReaders:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        monkeypatch.setattr(protocol, "_STALL_SECONDS", 1.0)
        monkeypatch.setattr(protocol, "_STALL_BYTES", 1 << 10)

    def test_one_that_takes_nothing_is_cut_off(self):
        with listening() as server, closing(server.connect(LARGE_GET)):
            eventually(server.count)
            eventually(lambda: not server.count())

    def test_one_that_takes_a_little_at_a_time_gets_everything(self, monkeypatch):
        limit = patience(1)
        monkeypatch.setattr(protocol, "_STALL_SECONDS", limit)
        with listening() as server, closing(server.connect()) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            line.sendall(LARGE_GET)
            began, received = time.monotonic(), 0
            while time.monotonic() - began < 1.5 * limit:
                received += len(line.recv(1 << 12))
                time.sleep(0.02)
            while received < LARGE:
                part = len(line.recv(1 << 20))
                assert part
                received += part

    def test_a_quiet_connection_is_not_one(self):
        with listening() as server, closing(server.connect(GET)) as line:
            assert line.recv(1000)
            time.sleep(1.5)
            assert server.count() == 1


class TestPipelining:
    def test_requests_are_answered_in_order(self):
        post = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
        sent = b"".join(
            post + b"Content-Length: %d\r\n\r\n" % size + bytes(size) for size in range(50)
        )
        last = post + b"Connection: close\r\n\r\n"
        with listening() as server, closing(server.connect(sent + last)) as line:
            answers = re.findall(rb"\r\n\r\n([0-9]+)", read_all(line))
        assert answers == [b"%d" % size for size in (*range(50), 0)]

    def test_a_long_queue_of_them_is_not_kept(self):
        queue = LARGE_GET + GET * 10_000
        with listening() as server, closing(server.connect(queue)):
            eventually(lambda: not server.count())


class TestLimits:
    def test_half_open_ones_do_not_keep_others_away(self):
        with listening(most=20, most_per_caller=10) as server:
            lines = [server.connect(GET[:-2]) for _ in range(50)]
            eventually(lambda: 0 < server.count() <= 10)
            for source in ("127.0.0.1", "127.0.0.2"):
                with closing(server.connect(GET, source=source)) as line:
                    assert heard(line)
            for line in lines:
                line.close()
            eventually(lambda: not server.count())

    def test_when_all_are_served_the_next_hears_why(self, monkeypatch):
        monkeypatch.setattr(protocol, "_SPARED_SECONDS", 1e9)
        with listening(most_per_caller=2) as server:
            lines = [server.connect(LARGE_GET) for _ in range(2)]
            for line in lines:
                assert line.recv(12) == b"HTTP/1.1 200"
            with closing(server.connect()) as line:
                assert refused(read_all(line)) == (429, "too_many_connections")
            with closing(server.connect(GET, source="127.0.0.2")) as line:
                assert heard(line)
            for line in lines:
                line.close()

    @pytest.mark.parametrize("sent", [POST.replace(b"blind", b"echo"), LARGE_GET])
    def test_one_that_keeps_the_server_waiting_makes_room(self, sent):
        with listening(most_per_caller=1) as server, closing(server.connect(sent)) as line:
            # It has had its time, and every second the server looks at what is unread.
            time.sleep(patience(1))
            with closing(server.connect(GET)) as honest:
                assert heard(honest)
            read_all(line)
