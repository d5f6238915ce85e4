"""The gateway's HTTP client of the inference process."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import httpx2
import structlog
from anyio import CancelScope
from starlette.responses import StreamingResponse

from service.context import from_state
from store.errors import ProblemError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from store.orders import DeltaOrder
    from store.settings import Settings

_CONNECT_SECONDS = 2.0
_PROBE_SECONDS = 1.0
# Before the first byte: one model is merged at a time, and its backbone may have to be loaded.
_MERGE_SECONDS = 600.0
_SPARE_SECONDS = 10.0  # beyond the time that the inference process has for predictions
_MAX_STREAMS = 32  # each keeps a merged model in the memory of the inference process
_MAX_PREDICTIONS = 128  # each keeps the inputs in our memory
_KEEPALIVE_SECONDS = 2.0  # below uvicorn's five, so that it does not close while we send
_MAX_PROBLEM_BYTES = 1 << 16
# Errors about the head delta, the backbone or the load are passed on. Errors about the gateway's
# own token or request are not: callers get a 503.
_LOAD_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_MERGE_STATUSES = _LOAD_STATUSES | {
    *(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
}
_GATEWAY_FAULT = "invalid_request"
_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)

_log = structlog.get_logger(__name__)


class InferenceClient:
    """HTTP client over TCP or a Unix socket.

    Merged models and predictions use separate connection pools, so neither can starve the other.

    Args:
        settings: address and token of the inference process.
    """

    def __init__(self, settings: Settings) -> None:
        self._streams = _connect(settings, most=_MAX_STREAMS + 1)
        self._predictions = _connect(settings, most=_MAX_PREDICTIONS)

    async def is_reachable(self) -> bool:
        """Return whether the inference process answers within about a second."""
        try:
            response = await self._streams.get("/healthz", timeout=_PROBE_SECONDS)
        except httpx2.TransportError:
            return False
        return response.status_code == HTTPStatus.OK

    async def merged_model(self, order: DeltaOrder, *, request_id: str) -> httpx2.Response:
        """Request a merged model.

        Args:
            order: the head delta to merge.
            request_id: used in the logs of both processes.

        Returns:
            The response with its body, a tar file, unread; the caller must close it.

        Raises:
            ProblemError: 503 ``inference_unavailable`` if the process does not answer, 429
                ``too_many_requests`` if too many requests are in flight, or the process's error.
        """
        return await _post(
            self._streams,
            "/merged",
            order.to_json(),
            request_id=request_id,
            seconds=_MERGE_SECONDS,
            passed_on=_MERGE_STATUSES,
        )

    async def predict(self, order: bytes, *, timeout_seconds: float, request_id: str) -> bytes:
        """Request predictions; cancelling this closes the connection, which drops the inputs.

        Args:
            order: a ``PredictionOrder`` as JSON.
            timeout_seconds: the order's timeout.
            request_id: used in the logs of both processes.

        Returns:
            The response's body, unparsed.

        Raises:
            ProblemError: 503 ``inference_unavailable`` if the process does not answer, 429
                ``too_many_requests`` if too many requests are in flight, or the process's error
                about its load.
        """
        response = await _post(
            self._predictions,
            "/predict",
            order,
            request_id=request_id,
            seconds=timeout_seconds + _SPARE_SECONDS,
            passed_on=_LOAD_STATUSES,
        )
        try:
            with _as_problems():
                return await response.aread()
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._streams.aclose()
        await self._predictions.aclose()


def _connect(settings: Settings, *, most: int) -> httpx2.AsyncClient:
    address = urlsplit(settings.infer_url)
    is_socket = address.scheme == "unix"
    token = settings.infer_token
    return httpx2.AsyncClient(
        base_url="http://inference" if is_socket else settings.infer_url,
        transport=httpx2.AsyncHTTPTransport(
            uds=unquote(address.path) if is_socket else None,
            limits=httpx2.Limits(max_connections=most, keepalive_expiry=_KEEPALIVE_SECONDS),
        ),
        headers={} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"},
    )


async def _post(
    client: httpx2.AsyncClient,
    path: str,
    content: bytes,
    *,
    request_id: str,
    seconds: float,
    passed_on: Collection[int],
) -> httpx2.Response:
    """Send a request, and return its response with the body unread.

    Raises:
        ProblemError: the process's own error if its status is in ``passed_on``; else 503.
    """
    request = client.build_request(
        "POST",
        path,
        content=content,
        headers={
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "X-Request-Id": request_id,
        },
        timeout=httpx2.Timeout(seconds, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
    )
    with _as_problems():
        response = await client.send(request, stream=True)
    if response.status_code == HTTPStatus.OK:
        return response
    try:
        raise await _problem(response, passed_on=passed_on)
    finally:
        await response.aclose()


@contextmanager
def _as_problems() -> Iterator[None]:
    """Convert connection errors to problems."""
    try:
        yield
    except httpx2.PoolTimeout as error:
        raise ProblemError(
            "too_many_requests",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            detail="too many requests in flight at the inference process; retry later",
        ) from error
    except httpx2.RequestError as error:
        _log.warning("inference_unavailable", error=repr(error))
        raise inference_unavailable() from error


class ProxiedFile(StreamingResponse):
    """Streams an upstream body to the caller; if one side disconnects, the other is closed.

    Args:
        upstream: the response to forward; closed in the end in any case.
        headers: of our response; Content-Length is added if it is known.
        media_type: of the body.
    """

    def __init__(
        self, upstream: httpx2.Response, *, headers: dict[str, str], media_type: str
    ) -> None:
        self._upstream = upstream
        length = upstream.headers.get("content-length")
        known = {} if length is None else {"Content-Length": length}
        chunks = upstream.aiter_raw()
        super().__init__(chunks, headers={**headers, **known}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then close the upstream response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._upstream.aclose()


async def _problem(response: httpx2.Response, *, passed_on: Collection[int]) -> ProblemError:
    """Return the inference process's error if its status is in ``passed_on``; else a 503."""
    status = response.status_code
    content = b""
    try:
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > _MAX_PROBLEM_BYTES:
                break
        problem = json.loads(content)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError, httpx2.TransportError):
        code, detail = "", ""
    _log.warning("inference_refused", status=status, code=code, detail=detail)
    if code in ("", _GATEWAY_FAULT) or status not in passed_on:
        return inference_unavailable()
    wait = response.headers.get("retry-after", "")
    headers = {"Retry-After": wait} if _SECONDS.fullmatch(wait) else None
    return ProblemError(code, status=status, detail=detail, headers=headers)


def inference_unavailable() -> ProblemError:
    """Return the 503 for an inference process that is unreachable or broken."""
    return ProblemError(
        "inference_unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the inference process, which predicts and merges, is unavailable; retry later",
    )


InferenceDep = Annotated[InferenceClient, from_state("inference")]
