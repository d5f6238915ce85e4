"""What a worker needs to run jobs: settings, stores, engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.jobs.claims import Claimant
from store.jobs.workers import register

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.settings import Settings
    from store.storage import ArtifactStorage
    from worker.engine.handle import EngineProcess


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """Passed to everything that runs in the worker.

    Attributes:
        worker_id: its row in the table of workers.
        folder: for its jobs' files; used by this worker only, and emptied after each job.
        backbones: id to folder, of those that jobs may use now.
        stopping: set when the worker must stop.
    """

    worker_id: str
    settings: Settings
    database: Database
    storage: ArtifactStorage
    engine: EngineProcess
    folder: Path
    backbones: Mapping[str, Path]
    stopping: threading.Event

    @property
    def claimant(self) -> Claimant:
        """This worker, as it claims jobs."""
        return Claimant(
            worker_id=self.worker_id,
            backbones=frozenset(self.backbones),
            allows_hub=self.settings.allow_hub,
        )

    def sign_on(self) -> None:
        """Register this worker in the table of workers."""
        register(
            self.database,
            worker_id=self.worker_id,
            device=self.settings.device,
            backbones=sorted(self.backbones),
            allows_hub=self.settings.allow_hub,
        )
