"""The inference process's application: predictions in mixed batches, and merged models."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
from anyio import CancelScope, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from store.database.connection import Database
from store.errors import ProblemError
from store.orders import DeltaOrder, Outcomes, PredictionOrder
from store.resources.scratch import own_folder
from store.resources.turns import Places, Turns
from store.storage import ArtifactStorage
from store.waiting import CallerLeftError, while_connected
from worker.inference.batches.runner import BatchRunner
from worker.inference.memory.deltas import DeltaCache
from worker.inference.merging import merge
from worker.inference.metrics import CONTENT_TYPE
from worker.inference.requests import check_token, problem_response, read_body
from worker.inference.serving import Serving, open_serving
from worker.tar import stream_tar

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from store.settings import Settings

# Merging, sending or waiting: each may hold a whole model on disk until it is sent. A tenant has at
# most four of them, and fewer next to others, so that a new tenant finds room.
MAX_REQUESTS = 8
_MAX_ORDER_BYTES = 1 << 14
_MAX_PREDICTION_BYTES = 32 << 20  # twice a gateway's limit, since the gateway adds fields
_CLIENT_CLOSED = 499
_log = structlog.get_logger(__name__)


def build_app(settings: Settings) -> Starlette:
    """Build the application; its temporary files are in the ``home`` of the settings.

    Raises:
        SettingsError: the artifact store's URL is of an unknown kind.
    """
    storage = ArtifactStorage(settings.artifacts_url)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        with own_folder(settings.home / "inference", label="infer") as folder:
            models = folder / "models"
            models.mkdir()
            deltas = DeltaCache(
                storage, folder=folder / "deltas", max_bytes=settings.infer_disk_bytes
            )
            merging = MergeHandler(settings, deltas=deltas, folder=models)
            with open_serving(settings, deltas=deltas) as serving:
                async with _batches(settings, storage, serving, folder / "batches"):
                    yield {"settings": settings, "merging": merging, "serving": serving}

    return Starlette(
        routes=[
            Route("/merged", _merged, methods=["POST"]),
            Route("/predict", _predict, methods=["POST"]),
            Route("/healthz", _health, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            ProblemError: _show_problem,
            HTTPException: _show_refusal,
            ClientDisconnect: _show_hang_up,
            CallerLeftError: _show_hang_up,
            Exception: _show_failure,
        },
    )


@asynccontextmanager
async def _batches(
    settings: Settings, storage: ArtifactStorage, serving: Serving, folder: Path
) -> AsyncIterator[None]:
    """Carry out batch predictions during a block."""
    database = Database(settings.database_url, pool_size=4)
    runner = BatchRunner(
        settings, database=database, storage=storage, handler=serving.handler, folder=folder
    )
    try:
        yield
    finally:
        await runner.close()
        database.close()


class MergeHandler:
    """Runs one merge at a time and lets few requests wait; a merge needs the memory of a model.

    Tenants take turns, and each has a share of the requests.

    Args:
        settings: have the folder of backbones, and whether the hub may be used.
        deltas: the source of head deltas.
        folder: for merged models; used by this process only.
    """

    def __init__(self, settings: Settings, *, deltas: DeltaCache, folder: Path) -> None:
        self._settings = settings
        self._deltas = deltas
        self._folder = folder
        self._turns = Turns(1, most_each=1, spare=0)
        self._places = Places(MAX_REQUESTS, what="models being merged or sent")

    async def serve(self, order: DeltaOrder, request: Request) -> Response:
        """Return the tar of a merged model; its files are removed after sending, even on failure.

        Raises:
            ProblemError: 429 ``too_many_requests``, or as in ``merge``.
        """
        with ExitStack() as held:
            held.enter_context(self._places.take({order.tenant: 1}))
            async with self._turns.hold(order.tenant):
                if await request.is_disconnected():
                    return Response(status_code=_CLIENT_CLOSED)
                started = time.perf_counter()
                folder, size = await to_thread.run_sync(self._merge, order)
            _log.info("merged", bytes=size, seconds=round(time.perf_counter() - started, 3))
            return MergedModel(folder, size=size, on_end=held.pop_all().close)

    def _merge(self, order: DeltaOrder) -> tuple[Path, int]:
        return merge(order, settings=self._settings, deltas=self._deltas, parent=self._folder)


class MergedModel(StreamingResponse):
    """The tar of a folder, which is removed when the tar is sent or the client disconnects.

    Args:
        folder: to send.
        size: of the tar, in bytes.
        on_end: called after the removal.
    """

    def __init__(self, folder: Path, *, size: int, on_end: Callable[[], None]) -> None:
        self._folder = folder
        self._on_end = on_end
        super().__init__(
            stream_tar(folder),
            headers={"Content-Length": str(size)},
            media_type="application/x-tar",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the tar, then remove the folder."""
        try:
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                remove = partial(shutil.rmtree, self._folder, ignore_errors=True)
                await to_thread.run_sync(remove)
            self._on_end()


async def _merged(request: Request) -> Response:
    check_token(request, token=request.state.settings.infer_token)
    order = await read_body(request, DeltaOrder, max_bytes=_MAX_ORDER_BYTES)
    handler: MergeHandler = request.state.merging
    request_id = request.headers.get("x-request-id")
    with structlog.contextvars.bound_contextvars(
        request_id=request_id, tenant=order.tenant, job=order.job
    ):
        return await handler.serve(order, request)


async def _predict(request: Request) -> Response:
    check_token(request, token=request.state.settings.infer_token)
    order = await read_body(request, PredictionOrder, max_bytes=_MAX_PREDICTION_BYTES)
    serving: Serving = request.state.serving
    with structlog.contextvars.bound_contextvars(request_id=request.headers.get("x-request-id")):
        answers = await while_connected(request.receive, serving.predict(order))
    return Response(Outcomes(data=answers).model_dump_json(), media_type="application/json")


async def _metrics(request: Request) -> Response:
    check_token(request, token=request.state.settings.infer_token)
    serving: Serving = request.state.serving
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE)


async def _health(request: Request) -> Response:
    serving: Serving = request.state.serving
    if serving.executor.is_alive:
        return JSONResponse({"status": "ok"})
    raise ProblemError(
        "executor_ended",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        detail="the thread that computes has ended: restart the process",
    )


async def _show_problem(_: Request, error: Exception) -> Response:
    return problem_response(cast("ProblemError", error))


async def _show_refusal(_: Request, error: Exception) -> Response:
    """Return a problem for what the framework refuses: an unknown path or method."""
    refusal = cast("HTTPException", error)
    status = HTTPStatus(refusal.status_code)
    code = status.phrase.lower().replace(" ", "_")
    return problem_response(
        ProblemError(code, status=status, detail=refusal.detail, headers=refusal.headers)
    )


async def _show_hang_up(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


async def _show_failure(_: Request, error: Exception) -> Response:
    """Return a problem for an unexpected error; the server logs the traceback."""
    kind = type(error).__name__
    return problem_response(
        ProblemError(
            "internal_error",
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            detail=f"unexpected {kind}; the traceback is in the log of the inference process",
        )
    )
