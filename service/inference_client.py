"""The gateway's line to the inference process, which has the backbones that the gateway has not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx2
import structlog
from anyio import CancelScope
from starlette.responses import StreamingResponse

from service.problems import ProblemError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from store.settings import Settings

_CONNECT_SECONDS = 2.0
_PROBE_SECONDS = 1.0
# It merges one model at a time, and may have to load a backbone before the first byte.
_SILENT_SECONDS = 600.0
_TIMEOUT = httpx2.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS)
_MAX_STREAMS = 32  # each keeps a merged model in the memory of the inference process
_MAX_PROBLEM_BYTES = 1 << 16
# What it says of the head delta, the backbone or its load. That it does not like our token or our
# words is no caller's business.
_PASSED_ON = frozenset(
    {
        *(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
        *(HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE),
    }
)
_OUR_FAULT = "invalid_request"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """Which head delta to merge into which backbone.

    Attributes:
        tenant: whose blob the delta is.
        job: that made it.
        model: the backbone's id, or a hub id with its pinned ``revision``.
        sha256: of the delta in float32.
    """

    tenant: str
    job: str
    model: str
    revision: str | None
    sha256: str


class InferenceClient:
    """Speaks HTTP to the inference process, over TCP or a Unix socket.

    Args:
        settings: its address, and the token that it may ask for.
    """

    def __init__(self, settings: Settings) -> None:
        address = urlsplit(settings.infer_url)
        is_socket = address.scheme == "unix"
        token = settings.infer_token
        limits = httpx2.Limits(max_connections=_MAX_STREAMS + 1)
        self._client = httpx2.AsyncClient(
            base_url="http://inference" if is_socket else settings.infer_url,
            transport=httpx2.AsyncHTTPTransport(
                uds=unquote(address.path) if is_socket else None, limits=limits
            ),
            headers=(
                {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
            ),
            timeout=_TIMEOUT,
        )

    async def is_reachable(self) -> bool:
        """Tell whether the inference process answers, within a second or so."""
        try:
            response = await self._client.get("/healthz", timeout=_PROBE_SECONDS)
        except httpx2.TransportError:
            return False
        return response.status_code == HTTPStatus.OK

    async def merged_model(self, request: MergeRequest, *, request_id: str) -> httpx2.Response:
        """Ask for a merged model.

        Args:
            request: for which.
            request_id: under which both logs speak of it.

        Returns:
            An answer whose body, a tar file, has not been read yet; for whoever closes it.

        Raises:
            ProblemError: 503 ``inference_unavailable`` where the process does not answer, or what
                it says is wrong with the request.
        """
        headers = {"Accept-Encoding": "identity", "X-Request-Id": request_id}
        outgoing = self._client.build_request(
            "POST", "/merged", json=asdict(request), headers=headers
        )
        try:
            response = await self._client.send(outgoing, stream=True)
        except httpx2.TransportError as error:
            _log.warning("inference_unavailable", error=repr(error))
            raise _unavailable() from error
        if response.status_code == HTTPStatus.OK:
            return response
        try:
            raise await _problem(response)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()


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


async def _problem(response: httpx2.Response) -> ProblemError:
    """Pass on what the inference process says of the request; its own troubles are a 503."""
    status = response.status_code
    try:
        said = json.loads(await _beginning(response))
        code, detail = str(said["code"]), str(said["detail"])
    except (ValueError, KeyError, TypeError, httpx2.TransportError):
        code, detail = "", ""
    _log.warning("inference_refused", status=status, code=code, detail=detail)
    if code not in ("", _OUR_FAULT) and status in _PASSED_ON:
        return ProblemError(code, status=status, detail=detail)
    return _unavailable()


async def _beginning(response: httpx2.Response) -> bytes:
    content = b""
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > _MAX_PROBLEM_BYTES:
            break
    return content


def _unavailable() -> ProblemError:
    return ProblemError(
        "inference_unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the inference process, which merges models, cannot do it now; try again soon",
    )
