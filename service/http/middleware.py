"""Middleware for every request and response, outside the routes."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from service.connections.protocol import AnswerBrokenOffError
from service.connections.refusals import (
    CACHE_CONTROL,
    CONTENT_TYPE_OPTIONS,
    REQUEST_ID,
    new_request_id,
)
from service.http.problems import internal_error, problem_response
from store.errors import ProblemError
from store.waiting import CallerLeftError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}", re.ASCII)
_MAX_BODY_BYTES = 1 << 20
_DEFAULT_PORTS = {"http": 80, "https": 443}
# How long a body may keep the server waiting, in all: so much at first, and a second more for each
# of so many bytes, up to the first amount again.
_BODY_SECONDS = 30.0
_BODY_BYTES_PER_SECOND = 1024
# Of an answer's body passed on at a time. asyncio copies what a client does not take at once, and
# each of a thousand clients may be slow.
_PIECE_BYTES = 16 << 10

_log = structlog.get_logger("service.access")


class Door:
    """Assign request ids, refuse requests for other hosts or origins, and log all requests.

    Args:
        app: the wrapped application.
        allowed_hosts: host names to which the server answers; IPv6 addresses in brackets.
        observe: called with method, route, status and seconds of every answered request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Collection[str],
        observe: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        # A pipelined request starts in the context of the previous one.
        structlog.contextvars.unbind_contextvars("tenant", "job")
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.append(REQUEST_ID, request_id)
                headers.setdefault(*CACHE_CONTROL)
                headers.setdefault(*CONTENT_TYPE_OPTIONS)
            await _send_in_pieces(send, message)

        try:
            refusal = self._refuse(headers)
            if refusal is None:
                await self._app(scope, receive, send_named)
            else:
                response = problem_response(refusal, request_id=request_id)
                await response(scope, receive, send_named)
        except (ClientDisconnect, CallerLeftError):
            _log.info("client_left", method=scope["method"], path=scope["path"])
        except AnswerBrokenOffError as error:
            place = {"method": scope["method"], "path": scope["path"]}
            _log.error("answer_broken_off", **place, reason=str(error))
            raise
        except Exception:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status is not None:
                raise  # a part of the response has been sent: the connection must break
            response = problem_response(internal_error(), request_id=request_id)
            await response(scope, receive, send_named)
        finally:
            if status is not None:
                self._log_request(scope, status, time.perf_counter() - started)

    def _refuse(self, headers: Headers) -> ProblemError | None:
        """Check the request's host and origin."""
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if _without_port(host) not in self._allowed_hosts:
            return ProblemError(
                "host_not_allowed",
                status=HTTPStatus.BAD_REQUEST,
                detail=f"this server is not named {host!r}; HIFI_ALLOWED_HOSTS lists its names",
                param="Host",
            )
        if any(not _is_same_host(origin, host) for origin in headers.getlist("origin")):
            return ProblemError(
                "origin_not_allowed",
                status=HTTPStatus.FORBIDDEN,
                detail="pages of other sites may not call this server",
                param="Origin",
            )
        return None

    def _log_request(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._observe(scope["method"], route, status, seconds)
        _log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=int(status),  # an HTTPStatus would be logged by its name
            milliseconds=round(seconds * 1000, 1),
        )


def _request_id(headers: Headers) -> str:
    """Return the caller's request id if it is safe in a header and a log line, else a new one."""
    given = headers.get(REQUEST_ID, "")
    is_sane = _SANE_REQUEST_ID.fullmatch(given) is not None
    return given if is_sane else new_request_id()


async def _send_in_pieces(send: Send, message: Message) -> None:
    """Send a message; a large part of an answer's body in pieces, as its client takes them."""
    body = message.get("body", b"")
    last = max(len(body) - 1, 0) // _PIECE_BYTES * _PIECE_BYTES
    for start in range(0, last, _PIECE_BYTES):
        piece = bytes(body[start : start + _PIECE_BYTES])
        await send({"type": message["type"], "body": piece, "more_body": True})
        await asyncio.sleep(0)  # others have their turn, and news that the client has left arrives
    await send({**message, "body": body[last:]} if last else message)


def _without_port(host: str) -> str:
    """Remove the port: ``localhost:8000`` → ``localhost``, ``[::1]:8000`` → ``[::1]``."""
    name, _, port = host.rpartition(":")
    return name if name and port.isascii() and port.isdigit() else host


def _is_same_host(origin: str, host: str) -> bool:
    """Return whether an Origin is the host of the request; ``null`` never is."""
    try:
        address = urlsplit(origin.lower())
        default = _DEFAULT_PORTS[address.scheme]
    except (KeyError, ValueError):
        return False
    return bool(address.netloc) and address.netloc in (host, host.removesuffix(f":{default}"))


class BodyLimit:
    """Limit how large bodies are, whatever their headers say, and how slowly they may arrive.

    Args:
        app: the wrapped application.
        exceptions: patterns that match whole paths, each with its limit in bytes; all other paths
            have a limit of one mebibyte.
    """

    def __init__(self, app: ASGIApp, *, exceptions: Sequence[tuple[re.Pattern[str], int]]) -> None:
        self._app = app
        self._exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        limits = (limit for path, limit in self._exceptions if path.fullmatch(scope["path"]))
        body = _Body(receive, headers, limit=next(limits, _MAX_BODY_BYTES))

        async def send_after_body(message: Message) -> None:
            """Suppress the application's response to a body that was cut off."""
            if body.problem is None or body.is_answered:
                body.is_answered = True
                await send(message)

        if body.problem is None:
            with suppress(_RefusedError):
                await self._app(scope, body.receive, send_after_body)
        if body.problem is not None and not body.is_answered:
            response = problem_response(body.problem, request_id=scope["state"]["request_id"])
            await response(scope, receive, send)


class _RefusedError(Exception):
    """Ends the reading of a body that is too large or too slow."""


class _Body:
    """A request's body while it is received.

    Attributes:
        problem: why it is refused; None if it is not.
        is_answered: whether the answer has begun, after which nothing can be refused.
    """

    def __init__(self, receive: Receive, headers: Headers, *, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._seconds = _BODY_SECONDS  # for which the client may keep us waiting
        self._is_whole = False
        self.is_answered = False
        declared = headers.get("content-length", "")
        is_too_large = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit)
        self.problem = self._too_large() if is_too_large else None

    async def receive(self) -> Message:
        """Pass received messages on, up to the limits of size and time."""
        if self._is_whole or self.is_answered:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError:
            self.problem = _too_slow()
            raise _RefusedError from None
        size = len(message.get("body", b""))
        self._size += size
        self._seconds += size / _BODY_BYTES_PER_SECOND - (time.monotonic() - began)
        self._seconds = min(self._seconds, _BODY_SECONDS)
        self._is_whole = not message.get("more_body", False)
        if self._size > self._limit:
            self.problem = self._too_large()
            raise _RefusedError
        return message

    def _too_large(self) -> ProblemError:
        return ProblemError(
            "body_too_large",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            detail=f"the request's body is larger than the limit of {self._limit} bytes",
        )


def _too_slow() -> ProblemError:
    return ProblemError(
        "request_timeout",
        status=HTTPStatus.REQUEST_TIMEOUT,
        detail=f"the request's body arrives too slowly: {_BODY_BYTES_PER_SECOND} bytes per second "
        f"are the least, with pauses of {_BODY_SECONDS:g} seconds in all",
    )
