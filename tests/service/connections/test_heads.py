"""service.connections.heads: a head that two readers could read differently is refused."""

from __future__ import annotations

import h11
import pytest

from service.connections.heads import HEAD_BYTES, HeadError, StrictConnection, check_head

PLAIN = (
    b"GET /jobs?after=%00 HTTP/1.1\r\n"
    b"Host: a\r\nX-Name: \xe4 b\t\xff\r\nAccept: 1\r\nAccept: 2\r\n\r\n"
)


def head(*fields: bytes, line: bytes = b"POST /jobs HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: a", *fields, b"", b""])


class TestCheckHead:
    @pytest.mark.parametrize("received", [b"", b"GET", PLAIN[:-2], PLAIN, PLAIN + b"\x00\n body"])
    def test_accepts_what_is_clear_or_not_complete(self, received):
        check_head(received)

    @pytest.mark.parametrize("byte", [*range(9), 11, 12, *range(14, 32), 127])
    def test_refuses_every_control_character_but_a_tab(self, byte):
        with pytest.raises(HeadError, match="control character"):
            check_head(head(b"X-Name: a%cb" % byte))

    @pytest.mark.parametrize(
        ("received", "fault"),
        [
            (head(b"X-Name: a\rb"), "control character"),
            (head(b"X-Name: a\r\r"), "control character"),
            (head(b"X-Name: a\nX-Other: b"), "does not end with CR LF"),
            (b"GET / HTTP/1.1\nHost: a\n\n", "does not end with CR LF"),
            (head(b"X-Name: a", b" b"), "begins with white space"),
            (head(b"X-Name: a", b"\tb"), "begins with white space"),
            (head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), "beside transfer-encoding"),
            (head(b"content-length: 3", b"CONTENT-LENGTH: 3"), "content-length is given 2 times"),
            (
                head(b"Authorization: Bearer a", b"authorization: Bearer b"),
                "authorization is given",
            ),
            (head(b"Host: a"), "host is given 2 times"),
            (head(*[b"Transfer-Encoding: chunked"] * 3), "transfer-encoding is given 3 times"),
            (head(line=b"GET /jobs/%00 HTTP/1.1"), "the path contains a control character"),
            (head(line=b"GET /a%0D%0Ab HTTP/1.1"), "the path contains a control character"),
            (head(line=b"GET /%1b[31m?q HTTP/1.1"), "the path contains a control character"),
            (head(line=b"GET /%7f HTTP/1.1"), "the path contains a control character"),
        ],
    )
    def test_refuses_what_is_not_clear(self, received, fault):
        with pytest.raises(HeadError, match=fault) as refused:
            check_head(received)
        assert refused.value.error_status_hint == 400

    @pytest.mark.parametrize(
        "received",
        [
            head(b"X-Name: " + b"a" * HEAD_BYTES),
            b"GET /" + b"a" * HEAD_BYTES,
            head(*[b"A: b"] * 200),
        ],
    )
    def test_refuses_a_large_head_with_its_limit(self, received):
        with pytest.raises(HeadError, match=r"16384 bytes|at most 100") as refused:
            check_head(received)
        assert refused.value.error_status_hint == 431


class TestStrictConnection:
    def test_keeps_the_fault(self):
        connection = StrictConnection()
        connection.receive_data(head(b"Host: a"))
        with pytest.raises(h11.RemoteProtocolError):
            connection.next_event()
        assert str(connection.fault) == "host is given 2 times"

    def test_checks_every_head_and_no_body(self):
        connection = StrictConnection()
        connection.receive_data(head(b"Content-Length: 3") + b"\x00\n\n")
        events = [type(connection.next_event()) for _ in range(3)]
        assert events == [h11.Request, h11.Data, h11.EndOfMessage]
        answer = h11.Response(status_code=200, headers=[("content-length", "0")])
        for event in (answer, h11.EndOfMessage()):
            connection.send(event)
        connection.start_next_cycle()
        connection.receive_data(head(b"X: \x01"))
        with pytest.raises(HeadError):
            connection.next_event()
