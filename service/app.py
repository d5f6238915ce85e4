"""The gateway application: its resources, middleware and routes."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from service.context import Gateway
from service.datasets import routes as datasets
from service.http import problems
from service.http.auth import Authenticator, admit_caller
from service.http.middleware import BodyLimit, Door
from service.http.parameters import check_query
from service.http.shares import Shares
from service.inference import merged
from service.inference import routes as predictions
from service.inference.client import InferenceClient
from service.jobs import events, results
from service.jobs import routes as jobs
from service.jobs.tailer import Tailer
from service.openapi import document
from service.operations import models
from service.operations import routes as operations
from service.operations.metrics import Metrics
from service.operations.readiness import Readiness
from service.pages import routes as pages
from service.tenants import routes as tenants
from store.database.connection import Database
from store.database.schema import check
from store.queue import TokenPublisher, make_app
from store.storage import ArtifactStorage
from store.tenants import ensure_tenant

if TYPE_CHECKING:
    from store.settings import Settings

DEFAULT_TENANT = "default"
_THREADS = 20  # requests in threads at once; each uses at most one database connection
_CONVERSIONS = 2
_POSTS = 4
_HUB_POSTS = 4
_STALE_SECONDS = 24 * 3600.0  # longer than any upload


def build_app(settings: Settings) -> FastAPI:
    """Build the gateway; it opens nothing before it starts.

    Returns:
        The application. Its startup raises SchemaError if the tables are not of this version, and
        SettingsError if the artifact store cannot be used.
    """
    metrics = Metrics()
    app = FastAPI(
        # Our own routes require a key; FastAPI's would not.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=attrgetter("name"),
        lifespan=partial(_run, settings=settings, metrics=metrics),
        dependencies=[Depends(_guard)],
        middleware=[
            Middleware(Door, allowed_hosts=settings.allowed_hosts, observe=metrics.observe),
            Middleware(
                BodyLimit,
                exceptions=[
                    (re.compile(re.escape(datasets.UPLOAD_PATH)), settings.max_upload_bytes),
                    (predictions.PATHS, predictions.MAX_BODY_BYTES),
                ],
            ),
        ],
    )
    make_document = partial(document, app, requires_keys=settings.auth == "keys")
    app.openapi = cache(make_document)  # type: ignore[method-assign] # as FastAPI documents it
    problems.install(app)
    for routes in (
        *(jobs, events, results, merged, predictions, datasets, models, tenants),
        *(operations, pages),
    ):
        app.include_router(routes.router)
    return app


async def _guard(request: Request) -> None:
    """Authenticate the caller and check the query parameters, before every route."""
    await admit_caller(request)
    check_query(request)


@asynccontextmanager
async def _run(
    _app: FastAPI, *, settings: Settings, metrics: Metrics
) -> AsyncIterator[Mapping[str, Any]]:
    """Open the gateway's resources, and close them in reverse order."""
    to_thread.current_default_thread_limiter().total_tokens = _THREADS
    async with AsyncExitStack() as stack:
        database = Database(settings.database_url, pool_size=_THREADS)
        stack.callback(database.close)
        storage, default_tenant_id = await run_in_threadpool(_prepare, settings, database)
        publisher = TokenPublisher(make_app(settings))
        stack.push_async_callback(run_in_threadpool, publisher.close)
        inference = InferenceClient(settings)
        stack.push_async_callback(inference.close)
        readiness = Readiness(
            database=database, storage=storage, publisher=publisher, inference=inference
        )
        stack.push_async_callback(readiness.close)
        tailer = Tailer(database)
        stack.push_async_callback(tailer.close)
        yield {
            "authenticator": Authenticator(database, default_tenant_id=default_tenant_id),
            "inference": inference,
            "metrics": metrics,
            "readiness": readiness,
            "tailer": tailer,
            "gateway": Gateway(
                settings=settings,
                database=database,
                storage=storage,
                publisher=publisher,
                posting=CapacityLimiter(_POSTS),
                asking_hub=CapacityLimiter(_HUB_POSTS),
                converting=CapacityLimiter(_CONVERSIONS),
                shares=Shares(),
            ),
        }


def _prepare(settings: Settings, database: Database) -> tuple[ArtifactStorage, str | None]:
    """Check tables and artifact store; without keys, also ensure that the default tenant exists.

    Raises:
        SchemaError: the tables are not of this version.
        SettingsError: the artifact store cannot be used.
    """
    check(database)
    storage = ArtifactStorage(settings.artifacts_url)
    _remove_stale(settings.home / "uploads")
    if settings.auth == "keys":
        return storage, None
    with database.write() as session:
        return storage, ensure_tenant(session, DEFAULT_TENANT, is_admin=True).id


def _remove_stale(uploads: Path) -> None:
    """Remove the folders of killed gateways; recent ones may belong to a running gateway."""
    oldest = time.time() - _STALE_SECONDS
    for folder in uploads.glob("*"):
        try:
            is_stale = folder.stat().st_mtime < oldest
        except FileNotFoundError:
            continue
        if is_stale:
            shutil.rmtree(folder, ignore_errors=True)
