"""Middleware for every request and response, outside the routes."""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from service.http.problems import internal_error, problem_response
from store.errors import ProblemError
from store.waiting import CallerLeftError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}", re.ASCII)
_MAX_BODY_BYTES = 1 << 20
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The server must keep reading for a while when a client is still sending; otherwise the client sees
# a broken connection instead of the response.
_LINGER_BYTES = 16 << 20
_LINGER_SECONDS = 2.0

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
                MutableHeaders(scope=message).append(REQUEST_ID, request_id)
            await send(message)

        try:
            refusal = self._refuse(headers)
            if refusal is None:
                await self._app(scope, receive, send_named)
            else:
                response = problem_response(refusal, request_id=request_id)
                await response(scope, receive, send_named)
        except (ClientDisconnect, CallerLeftError):
            _log.info("client_left", method=scope["method"], path=scope["path"])
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
    return given if is_sane else f"{random.getrandbits(128):032x}"


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
    """Enforce size limits on the received bytes of bodies, whatever their headers say.

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
        limit = next(limits, _MAX_BODY_BYTES)
        body = _Body(receive, headers, limit=limit)
        is_started = False

        async def send_after_body(message: Message) -> None:
            """Suppress the application's response to a body that was cut off."""
            nonlocal is_started
            if body.is_too_large and not is_started:
                return
            if not is_started and not body.is_whole:
                await body.linger()
            is_started = True
            await send(message)

        if not body.is_too_large:
            with suppress(_TooLargeError):
                await self._app(scope, body.receive, send_after_body)
        if body.is_too_large and not is_started:
            await body.linger()
            problem = ProblemError(
                "body_too_large",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                detail=f"the request's body is larger than the limit of {limit} bytes",
            )
            response = problem_response(problem, request_id=scope["state"]["request_id"])
            await response(scope, receive, send)


class _TooLargeError(Exception):
    """Ends the reading of a body that is too large."""


class _Body:
    """A request's body while it is received."""

    def __init__(self, receive: Receive, headers: Headers, *, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self.is_whole = False
        # Such a client sends its body only after we ask for it.
        self._is_held_back = headers.get("expect", "").lower() == "100-continue"
        declared = headers.get("content-length", "")
        self.is_too_large = declared.isdecimal() and (len(declared) > 18 or int(declared) > limit)

    async def receive(self) -> Message:
        """Pass received messages on, up to the limit."""
        message = await self._next()
        if self._size > self._limit:
            self.is_too_large = True
            raise _TooLargeError
        return message

    async def linger(self) -> None:
        """Read what the client still sends, for a limited time, before the response."""
        if self._is_held_back:
            return
        end = self._size + _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.is_whole and self._size < end:
                    await self._next()

    async def _next(self) -> Message:
        self._is_held_back = False
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)
        else:
            self.is_whole = True
        return message
