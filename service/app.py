"""The gateway application: its resources, middleware and routes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from functools import cache, partial
from inspect import iscoroutinefunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from structlog.contextvars import bind_contextvars

from service.context import Gateway
from service.datasets import routes as datasets
from service.http import problems
from service.http.auth import Authenticator, admit_caller, is_public
from service.http.middleware import BodyLimit, Door
from service.http.parameters import check_query
from service.http.shares import Shares
from service.http.space import Space
from service.http.tables import TablesWatch, admit_tables
from service.inference import merged
from service.inference import routes as predictions
from service.inference.client import InferenceClient
from service.jobs import admin_routes, events, results
from service.jobs import routes as jobs
from service.jobs.tailer import Tailer
from service.openapi import document
from service.operations import models
from service.operations import routes as operations
from service.operations.metrics import Metrics
from service.operations.readiness import Readiness
from service.pages import routes as pages
from service.predictions import routes as batch_predictions
from service.tenants import own_keys
from service.tenants import routes as tenants
from store.database.connection import Database
from store.database.schema import check
from store.errors import SettingsError
from store.queue import TokenPublisher, make_app
from store.resources.scratch import own_folder
from store.resources.turns import FairPool, Turns
from store.storage import ArtifactStorage
from store.tenants import ensure_tenant
from store.waiting import while_connected

if TYPE_CHECKING:
    from pathlib import Path

    from store.settings import Settings

DEFAULT_TENANT = "default"
_THREADS = 20  # requests in threads at once; each uses at most one database connection
# Uploads converted at once: two of one tenant at most, and the last turn is for a tenant that has
# none. So one tenant's slow uploads delay no other's.
_CONVERSIONS, _CONVERSIONS_EACH, _CONVERSIONS_SPARE = 3, 2, 1
# Few of one tenant's requests are answered at once: a page of its rows takes up to 20 MB, and every
# thread takes time from the others.
_THREADS_EACH, _THREADS_SPARE = 4, 4
_POSTS, _POSTS_EACH, _POSTS_SPARE = 4, 2, 1
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})  # in all routes
_BODY_HEADERS = frozenset({"content-length", "transfer-encoding"})


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
        dependencies=[Depends(_guard, scope="function")],
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
        *(jobs, events, results, merged, predictions, batch_predictions, datasets, models),
        *(tenants, admin_routes, own_keys),
        *(operations, pages),
    ):
        app.include_router(routes.router)
    return app


async def _guard(request: Request) -> AsyncIterator[None]:
    """Admit a request to its route; one whose caller leaves meanwhile waits no longer."""
    async with AsyncExitStack() as held:
        admission = _admit(request, held)
        if request.method in _WITHOUT_BODY and _BODY_HEADERS.isdisjoint(request.headers):
            admission = while_connected(request.receive, admission)
        await admission
        if not is_public(request.scope["endpoint"]):
            bind_contextvars(tenant=request.state.caller.tenant_id)
        yield


async def _admit(request: Request, held: AsyncExitStack) -> None:
    """Check the tables, the caller and the query parameters; hold the turn of a thread."""
    await admit_tables(request)
    await admit_caller(request)
    check_query(request)
    endpoint = request.scope["endpoint"]
    if not is_public(endpoint) and not iscoroutinefunction(endpoint):
        turns = request.state.gateway.answering
        await held.enter_async_context(turns.hold(request.state.caller.tenant_id))


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
        uploads = stack.enter_context(_folder_for_uploads(settings))
        publisher = TokenPublisher(make_app(settings))
        stack.push_async_callback(run_in_threadpool, publisher.close)
        inference = InferenceClient(settings)
        stack.push_async_callback(inference.close)
        readiness = Readiness(
            database=database,
            storage=storage,
            publisher=publisher,
            inference=inference,
            home=settings.home,
        )
        stack.push_async_callback(readiness.close)
        authenticator = Authenticator(database, default_tenant_id=default_tenant_id)
        stack.callback(authenticator.close)
        tables = TablesWatch(database)
        stack.push_async_callback(tables.close)
        tailer = Tailer(database)
        stack.push_async_callback(tailer.close)
        posting, asking_hub = (stack.enter_context(_threads_for(name)) for name in ("post", "hub"))
        space = Space(database, storage, settings=settings)
        stack.push_async_callback(space.close)
        yield {
            "authenticator": authenticator,
            "inference": inference,
            "metrics": metrics,
            "readiness": readiness,
            "tables": tables,
            "tailer": tailer,
            "gateway": Gateway(
                settings=settings,
                database=database,
                storage=storage,
                publisher=publisher,
                answering=Turns(_THREADS, most_each=_THREADS_EACH, spare=_THREADS_SPARE),
                posting=posting,
                asking_hub=asking_hub,
                uploads=uploads,
                converting=Turns(
                    _CONVERSIONS, most_each=_CONVERSIONS_EACH, spare=_CONVERSIONS_SPARE
                ),
                space=space,
                shares=Shares(),
            ),
        }


def _threads_for(posts: str) -> closing[FairPool]:
    """Return threads for posts, which tenants get in turn, for the time of a block."""
    return closing(FairPool(_POSTS, most_each=_POSTS_EACH, spare=_POSTS_SPARE, name=posts))


def _prepare(settings: Settings, database: Database) -> tuple[ArtifactStorage, str | None]:
    """Check tables and artifact store; without keys, also ensure that the default tenant exists.

    Raises:
        SchemaError: the tables are not of this version.
        SettingsError: the artifact store cannot be used.
    """
    check(database)
    storage = ArtifactStorage(settings.artifacts_url)
    if settings.auth == "keys":
        return storage, None
    with database.write() as session:
        return storage, ensure_tenant(session, DEFAULT_TENANT, is_admin=True).id


@contextmanager
def _folder_for_uploads(settings: Settings) -> Iterator[Path]:
    """Create this process's folder for uploads, and remove those that killed gateways left.

    Raises:
        SettingsError: it cannot be created.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(own_folder(settings.home / "uploads", label="gateway"))
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(f"cannot use HIFI_HOME={settings.home}: {reason}") from error
        yield folder
