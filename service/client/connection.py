"""The connection to one server: requests with safe retries, JSON responses, typed errors."""

from __future__ import annotations

import email.utils
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.client.errors import (
    AddressError,
    ApiError,
    BodyError,
    ClientError,
    UnexpectedAnswerError,
    UnreachableError,
)

CONNECT_SECONDS = 5.0
ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.1  # doubled each time: an unreachable server is reported after 1.5 s
_LONGEST_WAIT_SECONDS = 30.0  # the longest Retry-After that is followed
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# The request cannot have reached the server, so any request may be repeated.
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

Fields = Mapping[str, str | int | bool | None]
# Opens the content of a multipart request, once per attempt.
OpenForm = Callable[[], AbstractContextManager[Mapping[str, Any]]]


class Connection:
    """A connection pool to one server; its arguments are those of the client."""

    def __init__(self, url: str, *, api_key: str | None, timeout: float) -> None:
        host = _check_url(url)
        _check_key(api_key)
        self.url = url.rstrip("/")
        self.sleep: Callable[[float], None] = time.sleep  # tests replace it
        self._timeout = timeout
        self._http = httpx2.Client(
            base_url=self.url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            trust_env=host not in _LOOPBACK,  # a proxy cannot reach our loopback
        )

    def close(self) -> None:
        """Close the open connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Fields | None = None,
        body: object = None,
        idempotency_key: str | None = None,
        open_form: OpenForm | None = None,
        changes_nothing: bool = False,
        timeout: float | None = None,
    ) -> Any:  # noqa: ANN401 - the caller knows which document it is
        """Send a request and return the response's JSON, or None if it has no body.

        When the connection breaks, requests that change nothing, as a GET, or have an idempotency
        key are repeated; others only if they cannot have arrived. All are repeated if the server
        is busy. Query parameters that are None are left out; ``timeout`` is the read timeout in
        seconds, by default the connection's.

        Raises:
            BodyError: the body is not JSON, such as a number that is not finite.
            ApiError: the server refuses.
            UnreachableError: the server cannot be reached.
            UnexpectedAnswerError: the response is not from a HiFi server.
        """
        _check_body(body)
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        content = None if body is None else _encode(body)
        if content is not None:
            headers["Content-Type"] = "application/json"

        def send() -> httpx2.Response:
            with nullcontext({}) if open_form is None else open_form() as form:
                return self._http.request(
                    method,
                    path,
                    params=_given(query),
                    content=content,
                    headers=headers,
                    timeout=_timeout(self._timeout if timeout is None else timeout),
                    **form,
                )

        is_safe = changes_nothing or method == "GET" or idempotency_key is not None
        response = self._repeat(send, is_safe=is_safe)
        if response.status_code == httpx2.codes.NO_CONTENT:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise self._unexpected(response) from error

    @contextmanager
    def stream(
        self, path: str, *, query: Fields | None = None, headers: Mapping[str, str], timeout: float
    ) -> Iterator[httpx2.Response]:
        """Open a streamed response; without retries.

        Raises:
            ApiError: the server refuses.
            httpx2.TransportError: the server cannot be reached, or the connection breaks.
        """
        with self._http.stream(
            "GET", path, params=_given(query), headers=headers, timeout=_timeout(timeout)
        ) as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            yield response

    def unreachable(self, error: httpx2.TransportError) -> UnreachableError:
        """Return a one-line error for an unreachable server, with what to do."""
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, _NEVER_SENT):
            return UnreachableError(f"{self.url} did not respond in time; try again later")
        reason = str(error) or type(error).__name__
        return UnreachableError(
            f"no HiFi server answers at {self.url} ({reason}): start one there with `hifi serve`, "
            "or set --url or HIFI_URL to yours"
        )

    def _repeat(self, send: Callable[[], httpx2.Response], *, is_safe: bool) -> httpx2.Response:
        wait = _FIRST_WAIT_SECONDS
        attempt = 0
        while True:
            attempt += 1
            refusal: ClientError
            try:
                response = send()
                if response.is_success:
                    return response
                refusal = self._refusal(response)
                may_repeat = isinstance(refusal, ApiError) and refusal.is_busy
            except httpx2.TransportError as error:
                refusal = self.unreachable(error)
                refusal.__cause__ = error
                may_repeat = is_safe or isinstance(error, _NEVER_SENT)
            least = getattr(refusal, "retry_after", None) or 0.0
            if not may_repeat or attempt == ATTEMPTS or least > _LONGEST_WAIT_SECONDS:
                raise refusal
            spread = random.uniform(1.0, 1.2)  # noqa: S311 - between clients, no secret
            self.sleep(spread * max(wait, least))
            wait *= 2

    def _refusal(self, response: httpx2.Response) -> ClientError:
        """Return the error of a response, an RFC 9457 problem."""
        try:
            problem = response.json()
            code, detail = str(problem["code"]), str(problem["detail"])
        except (ValueError, KeyError, TypeError):
            return self._unexpected(response)
        return ApiError(
            code,
            detail=detail,
            param=problem.get("param"),
            status=response.status_code,
            request_id=response.headers.get("x-request-id"),
            retry_after=_seconds(response.headers.get("retry-after")),
        )

    def _unexpected(self, response: httpx2.Response) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(
            f"{self.url} answers with status {response.status_code}, but is not a HiFi server: "
            "check --url or HIFI_URL"
        )


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"{url!r} is not the URL of a server ({error})") from error
    if parts.scheme not in ("http", "https") or not host:
        raise AddressError(
            f"{url!r} is not the URL of a server: write http://host:port or https://host (--url "
            "or HIFI_URL)"
        )
    return host


def _check_key(api_key: str | None) -> None:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
        raise AddressError(
            "the API key contains invalid characters: copy it again, without line breaks "
            "(HIFI_API_KEY)"
        )


def _check_body(value: object, path: str = "") -> None:
    """Raise for a value that JSON does not have; ``path`` names its field, dotted."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_body(name, path)
            _check_body(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_body(part, f"{path}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BodyError(f"{path}={value} is not allowed: a finite number is needed")
    elif value is not None and not isinstance(value, str | int | float):
        raise BodyError(f"{path} is not allowed: JSON has no {type(value).__name__}")


def _encode(body: object) -> bytes:
    """Encode a body as JSON, escaped where a text has half of a surrogate pair."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(body, allow_nan=False).encode()


def _given(query: Fields | None) -> dict[str, str | int | bool]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=CONNECT_SECONDS)


def _seconds(retry_after: str | None) -> float | None:
    """Parse a Retry-After header, seconds or a date."""
    if not retry_after:
        return None
    if retry_after.isdigit():
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
