"""The gateway's line to the inference process, which has the backbones that the gateway has not."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx2
import structlog
from anyio import CancelScope
from starlette.responses import StreamingResponse

from store.errors import ProblemError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import Receive, Scope, Send

    from store.orders import DeltaOrder
    from store.settings import Settings

_CONNECT_SECONDS = 2.0
_PROBE_SECONDS = 1.0
# It merges one model at a time, and may have to load a backbone before the first byte.
_SILENT_SECONDS = 600.0
_SPARE_SECONDS = 10.0  # of ours, beyond the time that the other side has for predictions
_MAX_STREAMS = 32  # each keeps a merged model in the memory of the inference process
_MAX_PREDICTIONS = 128  # each keeps the inputs in our memory
# uvicorn closes a connection that has rested for five seconds: not while we send on it.
_REST_SECONDS = 2.0
_MAX_PROBLEM_BYTES = 1 << 16
# What it says of the head delta, the backbone or its load. That it does not like our token or our
# words is no caller's business.
_OF_ITS_LOAD = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_OF_A_MERGE = _OF_ITS_LOAD | {
    *(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
}
_OUR_FAULT = "invalid_request"
_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)

_log = structlog.get_logger(__name__)


class InferenceClient:
    """Speaks HTTP to the inference process, over TCP or a Unix socket.

    Merged models and predictions have connections of their own: however many of the one are under
    way, the other finds one.

    Args:
        settings: its address, and the token that it may ask for.
    """

    def __init__(self, settings: Settings) -> None:
        self._streams = _connect(settings, most=_MAX_STREAMS + 1)
        self._predictions = _connect(settings, most=_MAX_PREDICTIONS)

    async def is_reachable(self) -> bool:
        """Tell whether the inference process answers, within a second or so."""
        try:
            response = await self._streams.get("/healthz", timeout=_PROBE_SECONDS)
        except httpx2.TransportError:
            return False
        return response.status_code == HTTPStatus.OK

    async def merged_model(self, order: DeltaOrder, *, request_id: str) -> httpx2.Response:
        """Ask for a merged model.

        Args:
            order: for which.
            request_id: under which both logs speak of it.

        Returns:
            An answer whose body, a tar file, has not been read yet; for whoever closes it.

        Raises:
            ProblemError: 503 ``inference_unavailable`` where the process does not answer, 429
                ``too_many_requests`` where too many ask it, or what it says is wrong with the
                request.
        """
        request = self._streams.build_request(
            "POST",
            "/merged",
            content=order.to_json(),
            headers=_headers(request_id),
            timeout=_patience(_SILENT_SECONDS),
        )
        return await _send(self._streams, request, passed_on=_OF_A_MERGE)

    async def predict(self, order: bytes, *, timeout_seconds: float, request_id: str) -> bytes:
        """Ask for predictions; cancelling this hangs up, which takes the inputs back.

        Args:
            order: a ``PredictionOrder``, written.
            timeout_seconds: what it says of the time.
            request_id: under which both logs speak of it.

        Returns:
            The answer, whole and not looked at.

        Raises:
            ProblemError: 503 ``inference_unavailable`` where the process does not answer, 429
                ``too_many_requests`` where too many ask it, or what it says of its load.
        """
        request = self._predictions.build_request(
            "POST",
            "/predict",
            content=order,
            headers=_headers(request_id),
            timeout=_patience(timeout_seconds + _SPARE_SECONDS),
        )
        response = await _send(self._predictions, request, passed_on=_OF_ITS_LOAD)
        try:
            with _telling_absence():
                return await response.aread()
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Hang up."""
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
            limits=httpx2.Limits(max_connections=most, keepalive_expiry=_REST_SECONDS),
        ),
        headers={} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"},
    )


def _headers(request_id: str) -> dict[str, str]:
    return {
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "X-Request-Id": request_id,
    }


def _patience(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS)


async def _send(
    client: httpx2.AsyncClient, request: httpx2.Request, *, passed_on: Collection[int]
) -> httpx2.Response:
    """Send a request and give the answer, its body unread, if it is a good one.

    Raises:
        ProblemError: it is not; one whose status is among ``passed_on`` as it was said.
    """
    with _telling_absence():
        response = await client.send(request, stream=True)
    if response.status_code == HTTPStatus.OK:
        return response
    try:
        raise await _problem(response, passed_on=passed_on)
    finally:
        await response.aclose()


@contextmanager
def _telling_absence() -> Iterator[None]:
    try:
        yield
    except httpx2.PoolTimeout as error:
        raise ProblemError(
            "too_many_requests",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            detail="as many requests as may be are at the inference process; try again soon",
        ) from error
    except httpx2.RequestError as error:
        _log.warning("inference_unavailable", error=repr(error))
        raise inference_unavailable() from error


class ProxiedFile(StreamingResponse):
    """Passes a body on as it comes; when either side hangs up, so do we on the other.

    Args:
        upstream: whose body it is; closed at the end, however that comes.
        headers: of the answer; the length is added where it is known.
        media_type: of the body.
    """

    def __init__(
        self, upstream: httpx2.Response, *, headers: dict[str, str], media_type: str
    ) -> None:
        self._upstream = upstream
        length = upstream.headers.get("content-length")
        known = {} if length is None else {"Content-Length": length}
        super().__init__(_chunks(upstream), headers={**headers, **known}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._upstream.aclose()


async def _chunks(upstream: httpx2.Response) -> AsyncIterator[bytes]:
    async for chunk in upstream.aiter_raw():
        yield chunk


async def _problem(response: httpx2.Response, *, passed_on: Collection[int]) -> ProblemError:
    """Pass on what the inference process says of the request; its own troubles are a 503."""
    status = response.status_code
    try:
        said = json.loads(await _beginning(response))
        code, detail = str(said["code"]), str(said["detail"])
    except (ValueError, KeyError, TypeError, httpx2.TransportError):
        code, detail = "", ""
    _log.warning("inference_refused", status=status, code=code, detail=detail)
    if code in ("", _OUR_FAULT) or status not in passed_on:
        return inference_unavailable()
    wait = response.headers.get("retry-after", "")
    headers = {"Retry-After": wait} if _SECONDS.fullmatch(wait) else None
    return ProblemError(code, status=status, detail=detail, headers=headers)


async def _beginning(response: httpx2.Response) -> bytes:
    content = b""
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > _MAX_PROBLEM_BYTES:
            break
    return content


def inference_unavailable() -> ProblemError:
    """Say that the inference process is not there, or not as it should be."""
    return ProblemError(
        "inference_unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the inference process, which predicts and merges, cannot do it now; try again soon",
    )


def inference_of(connection: HTTPConnection) -> InferenceClient:
    """Find the line to the inference process: the lifespan puts it into the request's state."""
    inference: InferenceClient = connection.state.inference
    return inference
