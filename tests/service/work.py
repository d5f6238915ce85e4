"""What a worker does to a job: claim, score, train, finish."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.jobs.leases import Lease, Progress
from store.jobs.life import WorkEvent
from store.states import JobStatus
from tests.store.queues import add_job, claimed

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.storage import ArtifactStorage

FILES = {
    "float32": bytes(range(256)) * 12_000,  # more than one chunk of the artifact store
    "bfloat16": b"bfloat16" * 100,
    "int8": b"int8" * 100,
    "lora": b"a tar" * 100,
}
RESULT = {
    "metrics": {"f1": 0.9},
    "best_step": 8,
    "train_seconds": 4.0,
    "selection_seconds": 1.0,
    "samples_per_second": 64.0,
}


def running_job(database: Database, tenant_id: str, **changes: Any) -> tuple[str, Lease]:
    """Queue a job and claim it, which writes events 1 and 2."""
    identifier = add_job(database, tenant_id, **changes)
    job, lease = claimed(database)
    assert job.id == identifier
    return identifier, lease


def step(number: int, *, total: int = 100) -> WorkEvent:
    """Return the event of a training step."""
    data = {"step": number, "total_steps": total, "loss": 1.0 / number}
    return WorkEvent(type="step", message=f"step {number}/{total}", step=number, data=data)


def heads_of(job_id: str) -> dict[str, Any]:
    """Describe scores of 2 layers of 4 heads, of which two each are selected."""
    layers = [
        {
            "layer": layer,
            "information_richness": [3.0, 1.0, 4.0, 2.0],
            "correlation": [[1.0] * 4] * 4,
            "importance": [0.4, 0.1, 0.3, 0.2],
            "iterations": 14,
            "selected": [0, 2],
        }
        for layer in range(2)
    ]
    return {
        "object": "job.heads",
        "job": job_id,
        "model": "minilm",
        "fingerprint": "sha256:" + "0" * 64,
        "k": 2,
        "xi": 0.9,
        "d": 0.85,
        "strategy": "layer-wise",
        "teleport": "information",
        "n_samples": 300,
        "num_layers": 2,
        "num_heads": 4,
        "head_dim": 32,
        "trainable_parameters": 66_050,
        "fraction": 0.0293,
        "layers": layers,
    }


def select(lease: Lease, job_id: str) -> None:
    """Store the scores of :func:`heads_of`; advance to training."""
    document = heads_of(job_id)
    selection = {
        "heads": [[0, 0], [0, 2], [1, 0], [1, 2]],
        "trainable_parameters": document["trainable_parameters"],
        "fraction": document["fraction"],
    }
    lease.advance(JobStatus.SELECTING, message="scoring the heads")
    lease.keep_selection(selection=selection, heads=document)
    lease.advance(JobStatus.TRAINING, message="training")


def train(lease: Lease, *, steps: int) -> None:
    """Report steps, each with an event."""
    for number in range(1, steps + 1):
        progress = Progress(phase="training", step=number, total_steps=steps, eta_seconds=1.0)
        lease.report(progress, events=[step(number, total=steps)])


@contextmanager
def running_to_failure(lease: Lease, *, steps: int, pause: float) -> Iterator[None]:
    """Report steps from a thread and fail the job; wait for the thread after the block."""

    def write() -> None:
        for number in range(1, steps + 1):
            lease.report(Progress(), events=[step(number)])
            time.sleep(pause)
        lease.fail(code="engine_crashed", message="the end")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        writer.join()


def succeed(lease: Lease, storage: ArtifactStorage, tenant_id: str, **result: Any) -> None:
    """Store the files and end the job, with these changes of its result."""
    with tempfile.TemporaryDirectory() as folder:
        blobs = {}
        for encoding, content in FILES.items():
            file = Path(folder) / encoding
            file.write_bytes(content)
            blobs[encoding] = storage.put(tenant_id, file)
    lease.succeed(result={**RESULT, **result}, artifacts=blobs)


def finished_job(
    database: Database, storage: ArtifactStorage, tenant_id: str, **changes: Any
) -> str:
    """Run a job through all its states; return its id."""
    job_id, lease = running_job(database, tenant_id, **changes)
    select(lease, job_id)
    train(lease, steps=3)
    succeed(lease, storage, tenant_id)
    return job_id
