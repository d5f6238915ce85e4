"""The worker's main loop: one device, one engine, one job at a time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from store.database.connection import OUTAGES, Database
from store.database.schema import check
from store.jobs.claims import Claimant, claim_next
from store.jobs.reconciler import take_back_from
from store.jobs.workers import BackboneDescription, leave, put_backbone
from store.machine import machine_name
from store.queue import TokenPublisher, consume, make_app
from store.storage import ArtifactStorage
from worker.context import WorkerContext
from worker.engine.handle import EngineDiedError, EngineProcess
from worker.engine.messages import DescribeBackbones, Described, Ready
from worker.models import find_backbones
from worker.runner import UnfitError, run_job
from worker.scratch import own_folder
from worker.upkeep import Upkeep

if TYPE_CHECKING:
    from store.settings import Settings

_DESCRIBE_SECONDS = 1800.0  # per backbone; hashing a large one takes minutes
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
    )
    try:
        dead: list[str] = []
        work = settings.home / "work"
        with own_folder(work, label=machine_name(), on_orphan=dead.append) as folder:
            _take_back_from(dead, database=database)
            engine.start()
            engine.wait_until_ready()
            context = WorkerContext(
                worker_id=folder.name,
                settings=settings,
                database=database,
                storage=storage,
                engine=engine,
                folder=folder,
                backbones=_describe_backbones(settings, engine=engine, database=database),
                stopping=threading.Event(),
            )
            _consume(context)
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


def _describe_backbones(
    settings: Settings, *, engine: EngineProcess, database: Database
) -> Mapping[str, Path]:
    """Store the backbones' descriptions in the tables; return the usable ones, id to folder."""
    found = find_backbones(settings)
    engine.send(DescribeBackbones(backbones={name: str(path) for name, path in found.items()}))
    usable: dict[str, Path] = {}
    while not isinstance(message := engine.receive(timeout=_DESCRIBE_SECONDS), Ready):
        if not isinstance(message, Described):
            raise EngineDiedError("the engine did not describe its backbones in time")
        if message.description is None:
            _log.warning("backbone left out", backbone=message.id, reason=message.error)
            continue
        put_backbone(database, BackboneDescription(**message.description))
        usable[message.id] = found[message.id]
    if not usable and not settings.allow_hub:
        _log.warning("no backbone here: no job can be claimed", models=str(settings.models))
    return usable


def _consume(context: WorkerContext) -> None:
    """Consume tokens until Celery is stopped."""
    context.sign_on()
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
        upkeep.close()
        publisher.close()
        try:
            leave(context.database, context.worker_id)
        except OUTAGES as error:
            _log.warning("not signed off", reason=type(error).__name__)


def _run_jobs(context: WorkerContext) -> None:
    """Run jobs as long as there are any for this worker, not only the one of the token."""
    claimant = Claimant(
        worker_id=context.worker_id,
        backbones=frozenset(context.backbones),
        allows_hub=context.settings.allow_hub,
    )
    while not context.stopping.is_set():
        job = claim_next(
            context.database,
            claimant,
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
