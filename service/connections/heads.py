"""Refuse request heads that two readers, such as a proxy and this server, could read differently.

h11 parses the requests. It also accepts what some old clients send: folded lines, lines that end
without a carriage return, control characters, repeated headers. No client of today needs these.
"""

from __future__ import annotations

import re
from collections import Counter
from http import HTTPStatus

import h11

HEAD_BYTES = 16 << 10
_MOST_FIELDS = 100  # a browser sends about twenty
_END = re.compile(rb"\n\r?\n")  # as h11 finds it
_UNCLEAR = (
    (re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)"), "it contains a control character"),
    (re.compile(rb"(?<!\r)\n"), "a line does not end with CR LF"),
    (re.compile(rb"\n[ \t]"), "a line begins with white space"),
)
_ENCODED_CONTROL = re.compile(rb"[^ ]* [^ ?#]*%(?:[01][0-9a-fA-F]|7[fF])")
_ONCE = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding"}
)


class HeadError(h11.RemoteProtocolError):
    """A request's head is refused, and its connection closed."""


class StrictConnection(h11.Connection):
    """A server's side of a connection that checks each head before h11 parses it.

    Attributes:
        fault: the first error; nothing is parsed after it.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self.fault: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Return the next event, as h11 does."""
        try:
            if self.their_state is h11.IDLE:
                check_head(self.trailing_data[0])
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise


def check_head(received: bytes) -> None:
    """Raise for a head that is too large or could be read in two ways.

    Args:
        received: all bytes that have not been parsed; more than the head, or not yet all of it.

    Raises:
        HeadError: 400, or 431 for a head that is too large.
    """
    end = _END.search(received)
    size = len(received) if end is None else end.end()
    if size > HEAD_BYTES:
        raise _too_large(f"the head is larger than {HEAD_BYTES} bytes")
    if end is None:
        return
    head = received[:size]
    for pattern, fault in _UNCLEAR:
        if pattern.search(head):
            raise HeadError(fault)
    if _ENCODED_CONTROL.match(head):
        raise HeadError("the path contains a control character")
    fields = head.split(b"\r\n")[1:-2]
    if len(fields) > _MOST_FIELDS:
        raise _too_large(f"the head has {len(fields)} fields; at most {_MOST_FIELDS} are allowed")
    _check_fields(Counter(field.partition(b":")[0].lower() for field in fields))


def _check_fields(counts: Counter[bytes]) -> None:
    for name in sorted(_ONCE):
        if counts[name] > 1:
            raise HeadError(f"{name.decode()} is given {counts[name]} times")
    if counts[b"content-length"] and counts[b"transfer-encoding"]:
        raise HeadError("content-length is given beside transfer-encoding")


def _too_large(fault: str) -> HeadError:
    return HeadError(fault, error_status_hint=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
