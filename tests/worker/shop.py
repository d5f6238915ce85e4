"""A worker with one queued job, without its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from store.database.connection import Database
from store.datasets import Split, add_dataset
from store.jobs.actions import get_job, list_artifacts, list_events
from store.jobs.spec import JobSpec
from store.settings import Settings
from store.storage import ArtifactStorage
from store.tables import Base, Job
from tests.store.queues import add_job, add_tenant, claimed
from worker.context import WorkerContext
from worker.engine.handle import EngineDiedError
from worker.runner import run_job

if TYPE_CHECKING:
    from store.jobs.claims import ClaimedJob
    from store.states import JobStatus
    from tests.worker.scripted_engine import ScriptedEngine

SPEC = JobSpec.model_validate(
    {
        "model": "minilm",
        "dataset": "ds_1",
        "task": {"type": "classification", "text": "t", "label": "y"},
        "k": 1,
        "xi": 0.9,
        "training": {"epochs": 1},
    }
).model_dump(mode="json")
DIED = EngineDiedError("the engine was killed by SIGKILL")


class Shop:
    """A worker with one queued job, without its engine."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        home.mkdir()
        self.database = Database(self.settings.database_url)
        Base.metadata.create_all(self.database.engine)
        self.storage = ArtifactStorage(self.settings.artifacts_url)
        self.tenant = add_tenant(self.database, "a")
        self.stopping = threading.Event()
        self.folder = home / "work"
        source = home / "train"
        source.write_bytes(b"rows")
        blob = self.storage.put(self.tenant, source)
        with self.database.write() as session:
            dataset = add_dataset(
                session,
                self.tenant,
                name=None,
                splits={"train": Split(blob=blob, rows=1)},
                columns={},
                profile={},
                max_bytes=100,
            )
            self.dataset = dataset.id
        self.job = add_job(
            self.database, self.tenant, spec={**SPEC, "dataset": dataset.id}, dataset_id=dataset.id
        )

    def run(self, engine: ScriptedEngine, *, seconds: float = 60) -> ClaimedJob:
        job, _ = claimed(self.database, seconds=seconds)
        context = WorkerContext(
            worker_id="worker-1",
            settings=self.settings,
            database=self.database,
            storage=self.storage,
            engine=engine,  # type: ignore[arg-type] # it stands in for the process
            folder=self.folder,
            backbones={"minilm": Path("/models/minilm")},
            stopping=self.stopping,
        )
        run_job(job, context=context)
        assert not (self.folder / job.id).exists()
        return job

    def row(self) -> Job:
        with self.database.read() as session:
            return get_job(session, self.tenant, self.job, with_heads=True)

    def status(self) -> JobStatus:
        return self.row().status

    def events(self) -> list[tuple[str, int | None]]:
        with self.database.read() as session:
            events, _ = list_events(session, self.row(), limit=1000)
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            return [(event.type, event.step) for event in events]

    def warnings(self) -> list[str]:
        with self.database.read() as session:
            events, _ = list_events(session, self.row(), limit=1000)
        return [event.message for event in events if event.level == "warn"]

    def artifacts(self) -> dict[str, bytes]:
        with self.database.read() as session:
            rows = list_artifacts(session, self.row())
        return {
            row.encoding: b"".join(self.storage.read(row.tenant_id, row.sha256)) for row in rows
        }

    def asks(self, what: Callable[..., Job]) -> Callable[[ScriptedEngine], None]:
        """Return a line at which the owner pauses or cancels the job."""

        def ask(_: ScriptedEngine) -> None:
            with self.database.write() as session:
                what(session, self.tenant, self.job)

        return ask
