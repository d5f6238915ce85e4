"""The gateway's side of one connection: its time limits, and what it may hold in memory."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.connections.addresses import caller_of
from service.connections.heads import HEAD_BYTES, StrictConnection
from service.connections.refusals import refusal
from store.errors import ProblemError

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    from service.connections.limits import Connections

_HEAD_SECONDS = 10.0  # from a connection, or a later request's first byte, to the end of its head
# After the answer to a request whose body is still being sent: a client that is cut off sees a
# broken connection instead of the answer.
_LINGER_SECONDS = 2.0
_STALL_SECONDS = 60.0  # for a client to take _STALL_BYTES, or all that is left
_STALL_BYTES = 16 << 10
_READ_BYTES = 32 << 10  # at a time: what a client sends at once is in memory until it is read
_UNSENT_BYTES = 16 << 10  # beyond which an answer waits for its client
# A connection at a limit may be closed for one that waits, once it has had this long.
_SPARED_SECONDS = 0.25
_SHOWN_CHARACTERS = 200  # of what is wrong with a request, which may quote it


class AnswerBrokenOffError(Exception):
    """An answer that has begun cannot be completed; the message says why, for the log."""


class GatewayProtocol(H11Protocol):
    """uvicorn's connection, with limits. A subclass has its connections: :func:`limited_by`."""

    connections_limit: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as uvicorn calls it
        super().__init__(*args, **kwargs)
        self.app = partial(self._serve, self.app)
        self.conn = self._strict = StrictConnection()
        self.caller = ""
        self._idle_since: float | None = None  # waiting for the rest of a head
        self._busy_since: float | None = None  # has a request
        self._answered_at: float | None = None
        self._received = 0  # bytes of the current request
        self._unsent = 0  # the most since the client last took something
        self._moved_at = 0.0

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; after an answer that breaks off, end the connection.

        uvicorn would do the same, and log a traceback.
        """
        try:
            await app(scope, receive, send)
        except AnswerBrokenOffError:
            self.transport.close()
            while (await receive())["type"] != "http.disconnect":
                pass

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit a new connection, or refuse it."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined] # asyncio has no method
        self.caller = caller_of(self.client[0] if self.client else None)
        problem = self.connections_limit.admit(self)
        if problem is not None:
            self._refuse(problem)
            return
        self._idle_since = self._moved_at = time.monotonic()
        self.connections_limit.set_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.connections_limit.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        self._received += len(data)
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Release what the request held, and wait for the next."""
        self.cycle.body = bytearray()  # what the application left unread
        self._busy_since = None
        self._answered_at = time.monotonic()
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        """Start to measure how long the client takes."""
        self._unsent, self._moved_at = self._count_unsent(), time.monotonic()
        super().pause_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        fault = self._strict.fault
        status = HTTPStatus.BAD_REQUEST if fault is None else HTTPStatus(fault.error_status_hint)
        detail = f"this is not a valid HTTP/1.1 request: {fault or msg}"[:_SHOWN_CHARACTERS]
        self._refuse(ProblemError("invalid_http", status=status, detail=detail))

    def _refuse(self, problem: ProblemError) -> None:
        """Send a problem unless another answer has begun, and close the connection."""
        if self._is_answered or not self.cycle.response_started:
            self.transport.write(refusal(problem))
        self.transport.close()

    def abort(self) -> None:
        """Close the connection at once; what is unsent is lost."""
        self.transport.abort()

    def _note(self) -> None:
        """Note whether the connection has a request now, and how much it holds."""
        if self.transport.is_closing():
            self.connections_limit.set_idle(self)
            return
        now = time.monotonic()
        waiting = self._strict.trailing_data[0]
        if not self._is_answered:
            if self._busy_since is None:
                self._busy_since, self._idle_since, self._received = now, None, 0
                self.connections_limit.set_busy(self)
            if self.conn.their_state is h11.DONE and len(waiting) > HEAD_BYTES:
                self.abort()  # its requests cannot be answered in order any more
            return
        self.connections_limit.set_idle(self)
        if self.conn.their_state is not h11.IDLE or self._idle_since is not None:
            return
        # uvicorn's limit of an idle connection ends with any byte, also with the rest of a body.
        if waiting or self.timeout_keep_alive_task is None:
            self._idle_since = now

    def check(self, now: float) -> None:
        """Close the connection if it has exceeded a time limit."""
        unsent = self._count_unsent()
        if not unsent or unsent <= self._unsent - _STALL_BYTES:
            self._unsent, self._moved_at = unsent, now
        self._unsent = max(self._unsent, unsent)
        if now - self._moved_at > _STALL_SECONDS:
            self.abort()
        elif self.transport.is_closing():
            return
        elif self._idle_since is not None and now - self._idle_since > _HEAD_SECONDS:
            self._end_incomplete_head()
        elif self._is_lingering and now - cast("float", self._answered_at) > _LINGER_SECONDS:
            self.transport.close()

    @property
    def _is_answered(self) -> bool:
        """Whether no answer is due: there was no request, or its answer is complete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    @property
    def _is_lingering(self) -> bool:
        """Whether the request is answered and its body has not arrived."""
        return self._is_answered and self.conn.their_state is h11.SEND_BODY

    def _end_incomplete_head(self) -> None:
        if not self._strict.trailing_data[0]:
            self.transport.close()
            return
        detail = f"the request's head did not arrive within {_HEAD_SECONDS:g} seconds"
        status = HTTPStatus.REQUEST_TIMEOUT
        self._refuse(ProblemError("request_timeout", status=status, detail=detail))

    def pace(self, now: float) -> float | None:
        """Return its bytes per second while it keeps the server waiting; None if it does not."""
        if self._busy_since is None or now - self._busy_since < _SPARED_SECONDS:
            return None
        if self._unsent and now - self._moved_at > _SPARED_SECONDS:
            return 0.0
        if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused:
            return self._received / (now - self._busy_since)
        return None

    def _count_unsent(self) -> int:
        """Return the bytes that were sent and not acknowledged, in this process and the system."""
        queued = bytes(4)
        opened: socket.socket | None = self.transport.get_extra_info("socket")
        if opened is not None:
            with suppress(OSError, ValueError):  # it has just been closed
                queued = fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])


def limited_by(connections: Connections) -> type[GatewayProtocol]:
    """Return the protocol for :class:`uvicorn.Config` whose connections share a limit."""

    class Limited(GatewayProtocol):
        connections_limit = connections

    return Limited
