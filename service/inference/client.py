"""The gateway's HTTP client of the inference processes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, TypeVar

import httpx2
import structlog
from anyio import CancelScope
from starlette.responses import StreamingResponse

from service.connections.protocol import AnswerBrokenOffError
from service.context import from_state
from service.inference.processes import (
    CONNECT_SECONDS,
    HungError,
    Process,
    Processes,
    ProcessState,
)
from store.errors import ProblemError
from store.orders import MAX_SECONDS

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from store.orders import DeltaOrder, PredictionOrder
    from store.settings import Settings

# Before the first byte: one model is merged at a time, and its backbone may have to be loaded.
_MERGE_SECONDS = 600.0
_SPARE_SECONDS = 10.0  # beyond the time that the inference process has for predictions
# A process that was away for longer than any request may wait is not waited for. A restart loads
# torch, which takes 5 to 20 seconds, and minutes on a machine that is busy with other work.
_RESTART_SECONDS = MAX_SECONDS
# A request whose connection breaks may have ended the process: its last try is made alone, so that
# it takes no other request with it again.
_MOST_TRIES = 3
_MOST_WAITING = 128  # requests that wait for a restart at a time,
_MOST_WAITING_BYTES = 32 << 20  # and their size together
_MAX_PROBLEM_BYTES = 1 << 16
# Errors about the head delta, the backbone or the load are passed on. Errors about the gateway's
# own token or request are not: callers get a 503.
_LOAD_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_MERGE_STATUSES = _LOAD_STATUSES | {
    *(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
}
_GATEWAY_FAULT = "invalid_request"
_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)

_Done = TypeVar("_Done")
_log = structlog.get_logger(__name__)


class _LostError(Exception):
    """A process cannot be reached, or has ended or hung before its answer.

    Attributes:
        was_sent: whether it may have begun to work on the request.
    """

    def __init__(self, *, was_sent: bool) -> None:
        super().__init__()
        self.was_sent = was_sent


@dataclass(frozen=True)
class Reply:
    """What came back for some items of a request.

    Attributes:
        places: indices of the items.
        content: the response's body, unparsed; or why there is none.
    """

    places: Sequence[int]
    content: bytes | ProblemError


class InferenceClient:
    """HTTP client of all inference processes.

    If a process ends before its answer, the request is sent again: to the process that takes over,
    or to the same one once it has restarted. Until then the request waits, within its own deadline.

    Args:
        settings: addresses and token of the inference processes.
    """

    def __init__(self, settings: Settings) -> None:
        self._processes = Processes(settings)
        self._alone = asyncio.Lock()
        self._waiting: list[int] = []  # sizes

    async def is_reachable(self) -> bool:
        """Return whether an inference process answers within about a second."""
        return await self._processes.is_one_reachable()

    def states(self) -> list[ProcessState]:
        """Return the state of each process."""
        return self._processes.states()

    async def merged_model(self, order: DeltaOrder, *, request_id: str) -> httpx2.Response:
        """Request a merged model.

        Args:
            order: the head delta to merge.
            request_id: used in the logs of both processes.

        Returns:
            The response with its body, a tar file, unread; the caller must close it.

        Raises:
            ProblemError: 503 ``inference_unavailable`` if no process answers, 429
                ``too_many_requests`` if too many requests are in flight, or the process's error.
        """
        content = order.to_json()
        tries = _Tries(seconds=_RESTART_SECONDS)
        while True:
            process = self._processes.choose(order)
            ask = partial(
                _post,
                process.streams,
                "/merged",
                content,
                request_id=request_id,
                seconds=_MERGE_SECONDS,
                passed_on=_MERGE_STATUSES,
            )
            try:
                return await self._try(process, ask, tries)
            except _LostError as lost:
                await self._prepare_retry(tries, lost, size=len(content))

    async def predict(self, order: PredictionOrder, *, size: int, request_id: str) -> list[Reply]:
        """Request predictions; cancelling this closes the connections, which drops the inputs.

        Args:
            order: each process gets the items of its head deltas.
            size: of the order, in bytes, roughly.
            request_id: used in the logs of all processes.

        Returns:
            Replies that cover all items. An error is 503 ``inference_unavailable`` if no process
            answers, 429 ``too_many_requests`` if too many requests are in flight, or a process's
            error about its load.
        """
        tries = _Tries(seconds=order.timeout_seconds)
        return await self._predict(order, range(len(order.items)), tries, size, request_id)

    async def _predict(
        self,
        order: PredictionOrder,
        places: Sequence[int],
        tries: _Tries,
        size: int,
        request_id: str,
    ) -> list[Reply]:
        """Answer a part of a request; divide it as long as it is for several processes."""
        while True:
            parts = self._processes.divide(order.orders)
            if len(parts) > 1:
                break
            (process,) = parts
            ask = partial(self._ask, process, order, tries, request_id=request_id)
            try:
                return [Reply(places, await self._try(process, ask, tries))]
            except ProblemError as problem:
                return [Reply(places, problem)]
            except _LostError as lost:
                try:
                    await self._prepare_retry(tries, lost, size=size)
                except ProblemError as problem:
                    return [Reply(places, problem)]
        pending = []
        for deltas in parts.values():
            part, mine = order.part(deltas)
            share = size * len(mine) // len(places)
            at = [places[index] for index in mine]
            pending.append(self._predict(part, at, tries.copy(), share, request_id))
        return [reply for replies in await asyncio.gather(*pending) for reply in replies]

    async def _ask(
        self,
        process: Process,
        order: PredictionOrder,
        tries: _Tries,
        *,
        request_id: str,
    ) -> bytes:
        """Send an order with the time that is left to a process, and return the response's body."""
        seconds = tries.seconds_left
        response = await _post(
            process.predictions,
            "/predict",
            _each(order.json_chunks(seconds=seconds)),
            request_id=request_id,
            seconds=seconds + _SPARE_SECONDS,
            passed_on=_LOAD_STATUSES,
        )
        try:
            with _as_problems():
                return await response.aread()
        finally:
            await response.aclose()

    async def _try(
        self, process: Process, ask: Callable[[], Awaitable[_Done]], tries: _Tries
    ) -> _Done:
        """Try once, and note whether the process answers.

        Raises:
            ProblemError: as it answers.
            _LostError: it cannot be reached, or has ended or hung.
        """
        try:
            async with self._alone_if_last(tries):
                done = await _unless_hung(process, ask())
        except _LostError as lost:
            self._processes.note_failure(process, was_reached=lost.was_sent)
            raise
        self._processes.note_answer(process)
        return done

    @asynccontextmanager
    async def _alone_if_last(self, tries: _Tries) -> AsyncIterator[None]:
        """Make a last try alone: wait for those of other requests, within the deadline.

        Raises:
            ProblemError: 503 ``inference_unavailable``, they take too long.
        """
        if not tries.is_last:
            yield
            return
        try:
            async with asyncio.timeout(tries.seconds_left):
                await self._alone.acquire()
        except TimeoutError:
            raise inference_unavailable() from None
        try:
            yield
        finally:
            self._alone.release()

    async def _prepare_retry(self, tries: _Tries, lost: _LostError, *, size: int) -> None:
        """Wait until another try makes sense.

        Raises:
            ProblemError: 503 ``inference_unavailable``, it does not.
        """
        tries.note(lost)
        with self._wait_in_line(size):
            while tries.are_left and not self._processes.can_try:
                if not self._processes.were_here(seconds=_RESTART_SECONDS):
                    break
                await self._processes.wait_for_change(min(tries.seconds_left, 1.0))
        if not tries.are_left or not self._processes.can_try:
            raise inference_unavailable()

    @contextmanager
    def _wait_in_line(self, size: int) -> Iterator[None]:
        """Count a waiting request.

        Raises:
            ProblemError: 503 ``inference_unavailable``, too many requests wait.
        """
        is_full = sum(self._waiting) + size > _MOST_WAITING_BYTES
        if is_full or len(self._waiting) >= _MOST_WAITING:
            raise inference_unavailable()
        self._waiting.append(size)
        try:
            yield
        finally:
            self._waiting.remove(size)

    async def close(self) -> None:
        """Close all connections."""
        await self._processes.close()


class _Tries:
    """The tries of a request: how many broke, and until when it may be sent again."""

    def __init__(self, *, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._broken = 0

    def copy(self) -> _Tries:
        """Return the tries of a part of the request."""
        tries = _Tries(seconds=self.seconds_left)
        tries._broken = self._broken
        return tries

    @property
    def seconds_left(self) -> float:
        """The seconds until the deadline, at least a moment."""
        return max(self._deadline - asyncio.get_running_loop().time(), 0.001)

    @property
    def is_last(self) -> bool:
        """Whether the next try is the last one that may break."""
        return self._broken == _MOST_TRIES - 1

    @property
    def are_left(self) -> bool:
        """Whether the request may be sent again."""
        is_early = asyncio.get_running_loop().time() < self._deadline
        return is_early and self._broken < _MOST_TRIES

    def note(self, lost: _LostError) -> None:
        """Count a try during which the process ended."""
        self._broken += lost.was_sent


async def _unless_hung(process: Process, request: Awaitable[_Done]) -> _Done:
    try:
        return await process.unless_hung(request)
    except HungError as error:
        raise _LostError(was_sent=True) from error


async def _post(
    client: httpx2.AsyncClient,
    path: str,
    content: bytes | AsyncIterator[bytes],
    *,
    request_id: str,
    seconds: float,
    passed_on: Collection[int],
) -> httpx2.Response:
    """Send a request, and return its response with the body unread.

    Raises:
        ProblemError: the process's own error if its status is in ``passed_on``; else 503.
        _LostError: it cannot be reached, has ended, or does not answer in time.
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
        timeout=httpx2.Timeout(seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
    )
    with _as_problems():
        response = await client.send(request, stream=True)
    if response.status_code == HTTPStatus.OK:
        return response
    try:
        raise await _problem(response, passed_on=passed_on)
    finally:
        await response.aclose()


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks to a client that wants them asynchronously."""
    for chunk in chunks:
        yield chunk


@contextmanager
def _as_problems() -> Iterator[None]:
    """Convert connection errors to problems, or to _LostError."""
    try:
        yield
    except httpx2.PoolTimeout as error:
        raise ProblemError(
            "too_many_requests",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            detail="too many requests in flight at the inference process; retry later",
        ) from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise _LostError(was_sent=False) from error
    except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ReadTimeout) as error:
        raise _LostError(was_sent=True) from error
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
        chunks = _pass_on(upstream)
        super().__init__(chunks, headers={**headers, **known}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then close the upstream response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._upstream.aclose()


async def _pass_on(upstream: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield a body as it arrives.

    Raises:
        AnswerBrokenOffError: the inference process does not complete it.
    """
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx2.TransportError as error:
        raise AnswerBrokenOffError(f"the inference process broke off: {error!r}") from error


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
