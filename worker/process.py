"""The worker's main loop: one device, one engine, one job at a time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from store.database.connection import OUTAGES, Database
from store.database.schema import check
from store.errors import SchemaError
from store.jobs.claims import claim_next
from store.jobs.reconciler import take_back_from
from store.jobs.workers import change_offer, leave, put_backbone
from store.machine import machine_name
from store.queue import TokenPublisher, consume, make_app
from store.resources.scratch import own_folder
from store.storage import ArtifactStorage
from worker.catalog import Catalog, CatalogKeeper, Offer, describe_all
from worker.context import WorkerContext
from worker.describing import Describer
from worker.engine.handle import EngineProcess
from worker.runner import UnfitError, run_job
from worker.upkeep import Upkeep

if TYPE_CHECKING:
    from store.settings import Settings

_ASIDE_NICENESS = 5  # a third of a job's share of a core; at 19 it would starve next to a job
_UNFIT_SECONDS = 10.0  # how long a broken worker takes no jobs
_log = structlog.get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Work until a signal ends the process; checkpoint the running job and hand it back.

    Raises:
        SchemaError: the tables are not those of this version.
        SettingsError: the artifact store's URL is of an unknown kind.
        EngineDiedError: the engine cannot be started.
    """
    signal.signal(signal.SIGTERM, _end)  # until Celery installs its own handler
    database = Database(settings.database_url)
    check(database)
    storage = ArtifactStorage(settings.artifacts_url)
    engine = EngineProcess(
        device=settings.device,
        log_format=settings.log_format,
        environment=_engine_environment(settings),
        memory=settings.engine_memory_bytes,
    )
    with suppress(OSError):  # others may own it
        settings.models.mkdir(mode=0o700, parents=True, exist_ok=True)
    catalog = Catalog(settings)
    try:
        dead: list[str] = []
        with own_folder(settings.work, label=machine_name(), on_orphan=dead.append) as folder:
            _take_back_from(dead, database=database)
            _describe_backbones(catalog, settings=settings, engine=engine)
            context = WorkerContext(
                worker_id=folder.name,
                settings=settings,
                database=database,
                storage=storage,
                engine=engine,
                folder=folder,
                backbones=catalog,
                stopping=threading.Event(),
            )
            _consume(context, catalog)
    finally:
        engine.close()
        database.close()


def _take_back_from(dead: Sequence[str], *, database: Database) -> None:
    """Take back the jobs of dead workers of this machine, before their leases expire."""
    ours = [name for name in dead if name.rsplit("-", 2)[0] == machine_name()]
    try:
        taken_back = take_back_from(database, ours) if ours else 0
    except OUTAGES as error:  # their leases will expire
        _log.warning("jobs of dead workers left to their leases", reason=type(error).__name__)
        return
    if taken_back:
        _log.warning("jobs of dead workers taken back", jobs=taken_back)


def _end(*_: object) -> None:
    raise SystemExit(0)


def _engine_environment(settings: Settings) -> dict[str, str]:
    """Keep the engine off the hub, or at least from models that only the operator may read."""
    hub = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"} if settings.allow_hub else {"HF_HUB_OFFLINE": "1"}
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", **hub}


def _describe_backbones(catalog: Catalog, *, settings: Settings, engine: EngineProcess) -> None:
    """Describe the backbones that are here at the start, with the engine that has no job yet."""
    describe_all(catalog, Describer(engine))
    if not engine.is_ready:  # there was none to describe, or the last one ended the engine
        engine.start()
        engine.wait_until_ready()
    if not catalog and not settings.allow_hub:
        _log.warning("no backbone here: no job can be claimed", models=str(settings.models))


def _keep(context: WorkerContext, catalog: Catalog) -> CatalogKeeper:
    """Return what keeps the catalog, with a process of its own that uses no GPU."""
    settings = context.settings
    aside = EngineProcess(
        purpose="describing backbones",
        device="cpu",
        log_format=settings.log_format,
        environment={**_engine_environment(settings), "CUDA_VISIBLE_DEVICES": ""},
        niceness=_ASIDE_NICENESS,
    )
    publish = partial(_publish, context)
    return CatalogKeeper(catalog, describer=Describer(aside), publish=publish)


def _publish(context: WorkerContext, offer: Offer) -> None:
    check(context.database)
    change_offer(
        context.database,
        context.worker_id,
        backbones=list(offer.backbones.values()),
        unavailable=offer.unavailable,
    )
    _log.info("backbones", usable=sorted(offer.backbones), others=sorted(offer.unavailable))


def _consume(context: WorkerContext, catalog: Catalog) -> None:
    """Consume tokens until Celery is stopped."""
    for description in catalog.offer.backbones.values():  # before this worker counts as ready
        put_backbone(context.database, description)
    context.sign_on()
    keeper = _keep(context, catalog)
    _publish(context, catalog.offer)
    keeper.start()
    app = make_app(context.settings)
    publisher = TokenPublisher(app)
    upkeep = Upkeep(context, publisher=publisher)
    _log.info("worker ready", worker=context.worker_id, backbones=sorted(context.backbones))
    try:
        consume(
            app,
            partial(_run_jobs, context),
            name=f"hifi@{context.worker_id}",
            on_stop=context.stopping.set,
        )
    finally:
        keeper.close()
        upkeep.close()
        publisher.close()
        try:
            leave(context.database, context.worker_id)
        except OUTAGES as error:
            _log.warning("not signed off", reason=type(error).__name__)


def _run_jobs(context: WorkerContext) -> None:
    """Run jobs as long as there are any for this worker, not only the one of the token."""
    while not context.stopping.is_set():
        try:
            check(context.database)
        except SchemaError as error:
            _log.error("no job is claimed", reason=str(error))
            context.stopping.wait(_UNFIT_SECONDS)
            return
        job = claim_next(
            context.database,
            context.claimant,
            lease_seconds=context.settings.lease_seconds,
            max_running=context.settings.tenant_max_running,
        )
        if job is None:
            return
        try:
            run_job(job, context=context)
        except UnfitError as error:
            _log.error("no job can be run here", reason=str(error))
            context.stopping.wait(_UNFIT_SECONDS)
            return
