from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.connections.protocol import AnswerBrokenOffError
from service.inference import client as module
from service.inference import processes
from service.inference.client import InferenceClient, ProxiedFile
from store.errors import ProblemError
from store.orders import DeltaOrder, PredictionOrder
from store.settings import Settings
from tests.service.gateways import served, serving
from tests.waiting import patience

if TYPE_CHECKING:
    from starlette.requests import Request

ORDER = DeltaOrder(tenant="ten_1", job="job_1", model="minilm", revision=None, sha256="a" * 64)
TAR = bytes(range(256)) * 1000
ASKED = PredictionOrder.of_checked([ORDER], [(0, {"text": "a"})], truncate=True, timeout_seconds=5)


class Inference:
    """A fake inference process with scripted answers that records its requests."""

    def __init__(self) -> None:
        self.answer: Callable[[], Response] = lambda: Response(TAR)
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.closed = threading.Event()
        routes = [
            Route("/merged", self._answer, methods=["POST"]),
            Route("/predict", self._answer, methods=["POST"]),
            Route("/healthz", lambda _request: JSONResponse({})),
        ]
        self.app = Starlette(routes=routes)

    async def _answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        return self.answer()

    def endless(self) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield TAR
                    await asyncio.sleep(0.01)
            finally:
                self.closed.set()

        return StreamingResponse(chunks())

    def half(self) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield TAR
            raise ConnectionResetError

        return StreamingResponse(chunks())


@pytest.fixture
def inference() -> Inference:
    return Inference()


@pytest.fixture
def url(inference: Inference) -> Iterator[str]:
    with served(inference.app) as url:
        yield url


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[InferenceClient]:
    client = InferenceClient(Settings(infer_url=url, **settings))
    try:
        yield client
    finally:
        await client.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, patience(20)))


async def fetched(url: str, **settings: Any) -> bytes:
    async with connected(url, **settings) as client:
        answer = await client.merged_model(ORDER, request_id="req-1")
        content: bytes = await answer.aread()
        return content


class TestMergedModel:
    def test_comes_as_it_was_sent(self, inference: Inference, url: str):
        assert run(fetched(url)) == TAR
        assert inference.bodies == [
            {
                "tenant": "ten_1",
                "job": "job_1",
                "model": "minilm",
                "revision": None,
                "sha256": "a" * 64,
            }
        ]
        assert inference.headers[0]["x-request-id"] == "req-1"
        assert "authorization" not in inference.headers[0]

    def test_is_requested_with_the_token(self, inference: Inference, url: str):
        run(fetched(url, infer_token="sesame"))  # noqa: S106 - a test's
        assert inference.headers[0]["authorization"] == "Bearer sesame"

    def test_comes_through_a_unix_socket(self, inference: Inference, tmp_path: Path):
        path = tmp_path / "infer sock"
        with serving(inference.app, uds=str(path)):
            assert run(fetched(f"unix://{path}")) == TAR

    @pytest.mark.parametrize("status", [404, 409, 422, 429, 503])
    def test_passes_errors_of_the_request_on(self, inference: Inference, url: str, status: int):
        said = {"code": "fingerprint_mismatch", "detail": "made for another backbone"}
        inference.answer = lambda: JSONResponse(said, status_code=status)
        with pytest.raises(ProblemError) as caught:
            run(fetched(url))
        problem = caught.value
        assert (problem.status, problem.code) == (status, "fingerprint_mismatch")
        assert problem.detail == "made for another backbone"

    @pytest.mark.parametrize(
        "answer",
        [
            JSONResponse({"code": "unauthorized", "detail": "wrong token"}, status_code=401),
            JSONResponse({"code": "x", "detail": "a secret"}, status_code=500),
            JSONResponse({"code": "invalid_request", "detail": "sha256"}, status_code=422),
            Response("<html>", status_code=404),
            JSONResponse(["code"], status_code=409),
            Response(b"\xff" * (1 << 20), status_code=503),
        ],
    )
    def test_its_own_errors_count_as_unavailable(
        self, inference: Inference, url: str, answer: Response
    ):
        inference.answer = lambda: answer
        with pytest.raises(ProblemError) as caught:
            run(fetched(url))
        assert (caught.value.status, caught.value.code) == (503, "inference_unavailable")
        assert "secret" not in caught.value.detail

    def test_reports_an_unreachable_process(self, tmp_path: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", f"unix://{tmp_path}/none"):
            with pytest.raises(ProblemError) as caught:
                run(fetched(url))
            assert (caught.value.status, caught.value.code) == (503, "inference_unavailable")


async def predicted(url: str, **settings: Any) -> bytes:
    async with connected(url, **settings) as client:
        (reply,) = await client.predict(ASKED, size=100, request_id="req-2")
    if isinstance(reply.content, ProblemError):
        raise reply.content
    assert reply.places == range(1)
    return reply.content


class TestPredict:
    def test_returns_the_answer(self, inference: Inference, url: str):
        assert run(predicted(url, infer_token="sesame")) == TAR  # noqa: S106 - a test's
        (asked,) = inference.bodies
        assert 4 < asked.pop("timeout_seconds") <= 5
        assert asked == ASKED.model_dump(exclude={"timeout_seconds"})
        assert inference.headers[0]["x-request-id"] == "req-2"
        assert inference.headers[0]["authorization"] == "Bearer sesame"
        assert inference.headers[0]["content-type"] == "application/json"

    def test_comes_through_a_unix_socket(self, inference: Inference, tmp_path: Path):
        path = tmp_path / "infer sock"
        with serving(inference.app, uds=str(path)):
            assert run(predicted(f"unix://{path}")) == TAR

    def test_a_truncated_answer_counts_as_unavailable(self, inference: Inference, url: str):
        headers = {"content-length": str(2 * len(TAR))}
        inference.answer = lambda: StreamingResponse(iter([TAR]), headers=headers)
        with pytest.raises(ProblemError) as caught:
            run(predicted(url))
        assert (caught.value.status, caught.value.code) == (503, "inference_unavailable")


class TestConnections:
    def test_streams_and_predictions_do_not_wait_for_each_other(
        self, inference: Inference, url: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(processes, "_MAX_STREAMS", 1)
        monkeypatch.setattr(processes, "_MAX_PREDICTIONS", 1)
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)

        async def ask() -> None:
            async with connected(url) as client:
                inference.answer = inference.endless
                streams = [await client.merged_model(ORDER, request_id="req-1") for _ in range(2)]
                with pytest.raises(ProblemError) as merge:
                    await client.merged_model(ORDER, request_id="req-1")
                inference.answer = lambda: Response(TAR)
                (reply,) = await client.predict(ASKED, size=100, request_id="req-2")
                assert reply.content == TAR
                for stream in streams:
                    await stream.aclose()
                # And the other way round: an unanswered prediction does not block a stream.
                inference.answer = inference.endless
                predicting = asyncio.ensure_future(
                    client.predict(ASKED, size=100, request_id="req-2")
                )
                await asyncio.sleep(0.1)
                (refused,) = await client.predict(ASKED, size=100, request_id="req-2")
                for refusal in (merge.value, refused.content):
                    assert (refusal.status, refusal.code) == (429, "too_many_requests")
                stream = await client.merged_model(ORDER, request_id="req-1")
                await stream.aclose()
                predicting.cancel()

        run(ask())


class TestIsReachable:
    def test_returns_whether_a_process_answers(self, inference: Inference, tmp_path: Path):
        path = tmp_path / "sock"

        async def ask() -> bool:
            async with connected(f"unix://{path}") as client:
                return await client.is_reachable()

        assert not run(ask())
        with serving(inference.app, uds=str(path)):
            assert run(ask())


class TestProxiedFile:
    def test_hangs_up_when_the_caller_does(self, inference: Inference, url: str):
        inference.answer = inference.endless
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET"}
        sent: list[Any] = []
        enough = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 5:
                enough.set()

        async def receive() -> Any:
            await enough.wait()
            return {"type": "http.disconnect"}

        async def proxy() -> None:
            async with connected(url) as client:
                upstream = await client.merged_model(ORDER, request_id="req-1")
                response = ProxiedFile(upstream, headers={}, media_type="application/x-tar")
                await response(scope, receive, send)
                assert upstream.is_closed
                # The pool is not closed yet: the connection itself was given up.
                assert await asyncio.to_thread(inference.closed.wait, 5)

        run(proxy())
        assert sent[0]["status"] == 200
        assert sent[1]["body"]

    def test_breaks_off_when_the_inference_process_does(self, inference: Inference, url: str):
        inference.answer = inference.half
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET"}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def proxy() -> None:
            async with connected(url) as client:
                upstream = await client.merged_model(ORDER, request_id="req-1")
                response = ProxiedFile(upstream, headers={}, media_type="application/x-tar")
                await response(scope, asyncio.Event().wait, send)

        with pytest.raises(AnswerBrokenOffError, match="the inference process broke off"):
            run(proxy())
        assert sent[-1]["more_body"]  # it never ends

    def test_sends_the_length_if_known(self, inference: Inference, url: str):
        async def lengths() -> list[str | None]:
            async with connected(url) as client:
                found = []
                for answer in (Response(TAR), StreamingResponse(iter([TAR]))):
                    inference.answer = lambda answer=answer: answer
                    upstream = await client.merged_model(ORDER, request_id="req-1")
                    response = ProxiedFile(upstream, headers={}, media_type="application/x-tar")
                    found.append(response.headers.get("content-length"))
                    await upstream.aclose()
                return found

        assert run(lengths()) == [str(len(TAR)), None]
