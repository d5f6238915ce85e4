"""Jobs written straight into the tables of a deployment, and their results."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from pyarrow import parquet

from store.database.connection import OUTAGES, Database
from store.datasets import Split, add_dataset
from store.jobs.actions import NewJob, get_job, list_artifacts, list_events, submit
from store.jobs.spec import JobSpec
from store.queue import TokenPublisher, make_app
from store.settings import Settings
from store.storage import ArtifactStorage
from store.tables import Job, Worker
from store.tenants import create_tenant

MODEL = "all-MiniLM-L6-v2"
_WORDS = {0: ["dull", "slow", "flat", "weak"], 1: ["bright", "quick", "rich", "strong"]}


class Desk:
    """Does directly what a gateway does for a tenant: add data sets and jobs, read their state.

    Args:
        environment: of the deployment; its ``HIFI_…`` variables are the settings.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        names = {
            key.removeprefix("HIFI_").lower(): value
            for key, value in environment.items()
            if key.startswith("HIFI_")
        }
        self.settings = Settings(**{k: v for k, v in names.items() if k in Settings.model_fields})
        self.database = Database(self.settings.database_url)
        self.storage = ArtifactStorage(self.settings.artifacts_url)
        self.publisher = TokenPublisher(make_app(self.settings))
        with self.database.write() as session:
            self.tenant = create_tenant(session, f"t{random.random()}").id  # noqa: S311

    def close(self) -> None:
        """Close the database and the publisher."""
        self.publisher.close()
        self.database.close()

    def push(self, folder: Path, *, rows: int = 160) -> str:
        """Store a small data set of two classes; return its id."""
        splits = {}
        for path in write_splits(folder, rows=rows):
            count = parquet.read_metadata(path).num_rows
            splits[path.stem] = Split(blob=self.storage.put(self.tenant, path), rows=count)
        with self.database.write() as session:
            return add_dataset(
                session,
                self.tenant,
                name="words",
                splits=splits,
                columns={"text": "string", "label": "int64"},
                profile={},
                max_bytes=1 << 30,
            ).id

    def submit(self, dataset: str, *, tokens: int = 1, **training: Any) -> str:
        """Queue a job and publish its tokens; return its id."""
        spec = JobSpec.model_validate(
            {
                "model": MODEL,
                "dataset": dataset,
                "task": {
                    "type": "classification",
                    "text": ["text"],
                    "label": "label",
                    "metric": "accuracy",
                },
                "k": 1,
                "xi": 0.9,
                "n_samples": 64,
                "training": {
                    "epochs": 2,
                    "batch_size": 8,
                    "max_length": 32,
                    "precision": "float32",
                    **training,
                },
            }
        )
        with self.database.write() as session:
            job = submit(
                session,
                self.tenant,
                NewJob(
                    spec=spec.model_dump(mode="json"),
                    model=MODEL,
                    revision=None,
                    needs_hub=False,
                    dataset_id=dataset,
                    name=None,
                    meta={},
                ),
                max_queued=10_000,
            )
        if tokens:
            self.publisher.publish(tokens)
        return job.id

    def job(self, job_id: str) -> Job:
        """Load a job; retry while the database restarts."""
        while True:
            try:
                with self.database.read() as session:
                    return get_job(session, self.tenant, job_id)
            except OUTAGES:
                time.sleep(0.5)

    def is_at(self, job_id: str, phase: str) -> bool:
        """Return whether a job has reached a phase."""
        job = self.job(job_id)
        if phase == "validating":
            return job.started_at is not None
        order = ("loading", "probing", "selecting", "training", "evaluating", "writing")
        return job.phase is not None and order.index(job.phase) >= order.index(phase)

    def is_finished(self, job_id: str) -> Job | None:
        """Return the job if it has ended, else None."""
        job = self.job(job_id)
        return job if job.status.is_finished else None

    def hashes(self, job_id: str) -> dict[str, str]:
        """Return the hash of each artifact, checked against its bytes in the artifact store."""
        with self.database.read() as session:
            rows = list_artifacts(session, get_job(session, self.tenant, job_id))
        hashes = {}
        for row in rows:
            data = b"".join(self.storage.read(row.tenant_id, row.sha256))
            assert hashlib.sha256(data).hexdigest() == row.sha256
            hashes[row.encoding] = row.sha256
        return hashes

    def work_events(self, job_id: str) -> list[tuple[str, int | None, Any]]:
        """List the engine's events without what depends on the clock; assert gapless numbers."""
        with self.database.read() as session:
            job = get_job(session, self.tenant, job_id)
            events, _ = list_events(session, job, limit=10_000)
        assert [event.number for event in events] == list(range(1, job.last_event + 1))
        return [
            (event.type, event.step, event.data.get("loss"))
            for event in events
            if event.step is not None
        ]

    def warnings(self, job_id: str) -> list[str]:
        """List the warnings among a job's events."""
        with self.database.read() as session:
            events, _ = list_events(session, get_job(session, self.tenant, job_id), limit=10_000)
        return [event.message for event in events if event.level == "warn"]

    def live_workers(self) -> int:
        """Count the registered workers."""
        with self.database.read() as session:
            return session.scalars(sa.select(sa.func.count()).select_from(Worker)).one()


def write_splits(folder: Path, *, rows: int = 160) -> tuple[Path, Path]:
    """Write a training and a validation split that can be learnt."""
    train, validation = folder / "train.parquet", folder / "validation.parquet"
    parquet.write_table(_table(rows, seed=5), train)
    parquet.write_table(_table(rows // 4, seed=10), validation)
    return train, validation


def _table(rows: int, *, seed: int) -> pa.Table:
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    labels = [index % 2 for index in range(rows)]
    texts = [" ".join(draw.choices(_WORDS[label] + ["it", "is"], k=6)) for label in labels]
    return pa.table({"text": texts, "label": labels})
